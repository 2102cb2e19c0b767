// A conversation as a file: a line of JSON with all turns, then the server's signed state at the present one.

import { ServerError } from "./client.js";
import { Tree } from "./tree.js";

const FORMAT = "griffinlm conversation 1";
const LONGEST_LINE = 1 << 26;

/** Gives the reader a file of the conversation. */
export async function saveFile(client, tree) {
  const known = tree.path().findLast((turn) => turn.responseId !== null);
  const state = known === undefined ? "" : await stateOf(client, known);
  const line = JSON.stringify({ format: FORMAT, ...tree.toJSON() });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([line, "\n", state], { type: "application/octet-stream" }));
  link.download = "conversation.griffin";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** The signed state at a turn; none where the server no longer has it, and would read the conversation again. */
async function stateOf(client, turn) {
  try {
    return await client.download(turn.responseId);
  } catch (error) {
    if (error instanceof ServerError && error.status === 404) return "";
    throw error;
  }
}

/**
 * The conversation of a file, whose state the server has taken back. Of a file that the terminal or Python wrote the turns
 * are taken alone, since a server trusts only states that it has signed; the messages are read again.
 */
export async function openFile(client, file) {
  const told = await toldBy(file);
  if (told !== null) return Tree.fromTold(told, (await client.models())[0].id);
  const head = await file.slice(0, LONGEST_LINE).text();
  const end = head.indexOf("\n");
  let content = null;
  try {
    content = JSON.parse(head.slice(0, end));
  } catch {
    // Told below, as any other file that is none of ours.
  }
  if (content?.format !== FORMAT) throw new Error("it is no conversation of this page");
  const tree = Tree.fromJSON(content);
  const state = file.slice(new TextEncoder().encode(head.slice(0, end + 1)).length);
  if (state.size) await client.upload(state);
  return tree;
}

/** Turns and present one of a file of `griffinlm.conversation`, which begins with the length of its header; or null. */
async function toldBy(file) {
  try {
    const size = new DataView(await file.slice(0, 8).arrayBuffer()).getBigUint64(0, true);
    const header = JSON.parse(await file.slice(8, 8 + Math.min(Number(size), LONGEST_LINE)).text());
    return JSON.parse(header.__metadata__.griffinlm).details ?? null;
  } catch {
    return null;
  }
}
