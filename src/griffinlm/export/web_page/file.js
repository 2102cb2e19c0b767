// A conversation as a file: that of `griffinlm.conversation`, with all turns and the state at the present one.

import { Tree } from "./tree.js";

const OF_A_SERVER = "griffinlm conversation 1";

/** Gives the reader a file of the conversation. */
export async function saveFile(client, tree) {
  const file = await client.save(tree.told(), tree.current.responseId);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([file], { type: "application/octet-stream" }));
  link.download = "conversation.griffin";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/**
 * The conversation of a file. Of one that a server's page wrote the turns are taken alone, since only servers read its
 * state; the messages are read again.
 */
export async function openFile(client, file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const [{ id: model }] = await client.models();
  const told = toldByServer(bytes);
  if (told !== null) return Tree.fromTold(told, model);
  const { turns, current, id } = await client.open(bytes);
  return Tree.fromTold({ turns, current }, model, id ?? undefined);
}

/** Turns and present one of a server's file, which begins with a line of JSON; or null. */
function toldByServer(bytes) {
  const end = bytes.indexOf(0x0a);
  if (bytes[0] !== 0x7b || end < 0) return null;
  try {
    const content = JSON.parse(new TextDecoder().decode(bytes.subarray(0, end)));
    return content.format === OF_A_SERVER ? Tree.fromJSON(content).told() : null;
  } catch {
    return null;
  }
}
