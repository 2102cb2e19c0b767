// The page: one conversation with the server that it came from.

import { Client, ServerError } from "./client.js";
import { Figures } from "./figures.js";
import { openFile, saveFile } from "./file.js";
import { Messages, cutNote } from "./messages.js";
import { startTheme } from "./theme.js";
import { Tree } from "./tree.js";
import { TreeView } from "./tree_view.js";

const TREE = "griffin.tree";
/** Said where an answer that was cut is to go on. */
const GO_ON = "Go on.";

const at = (id) => document.getElementById(id);
const client = new Client(askForKey);
const figures = new Figures(at);
const messages = new Messages(at("messages"), { edit, again, goOn, goTo });
const treeView = new TreeView(at("tree"), goTo);

let tree = new Tree();
let models = [];
/** The turn being said in another way, and where the conversation was before; or null. */
let edited = null;
/** Of the answer being written, or null. */
let writing = null;

function show() {
  const isEmpty = tree.current.parent === null;
  at("empty").hidden = !isEmpty;
  messages.show(tree, writing?.turn ?? null);
  treeView.show(tree);
  figures.showLength(tree.current.numTokens);
  at("send").hidden = writing !== null;
  at("stop").hidden = writing === null;
  at("editing").hidden = edited === null;
  at("edited-turn").textContent = edited === null ? "" : String(edited.turn.number);
  for (const id of ["new", "save", "load"]) at(id).disabled = writing !== null;
  at("model").disabled = writing !== null || models.length === 0;
  remember();
}

/** Keeps the conversation for a reload of this tab. */
function remember() {
  try {
    sessionStorage.setItem(TREE, JSON.stringify(tree));
  } catch {
    sessionStorage.removeItem(TREE);
    complain("This conversation is too long to outlive a reload of the page; save it to a file.");
  }
}

function say(status) {
  at("status").textContent = status;
}

function complain(message) {
  at("notice").textContent = message;
  at("notice").hidden = message === "";
}

function goTo(turn) {
  if (writing !== null) return;
  edited = null;
  tree.goTo(turn.number);
  openSide(false);
  show();
  say(turn.parent === null ? "At the beginning" : `Behind turn ${turn.number}`);
}

function edit(turn) {
  edited = { turn, from: tree.current };
  tree.goTo(turn.parent);
  show();
  setText(turn.question);
  at("text").focus();
}

function cancelEdit() {
  if (edited === null) return;
  goTo(edited.from);
  setText("");
}

/** Whether the numbers under Sampling are in their ranges; else the first that is not is shown. */
function hasGoodNumbers() {
  const wrong = [at("temperature"), at("max-tokens")].find((field) => !field.checkValidity());
  if (wrong === undefined) return true;
  wrong.closest("details").open = true;
  wrong.reportValidity();
  return false;
}

function again(turn) {
  if (!hasGoodNumbers()) return;
  tree.goTo(turn.parent);
  answer(turn.question);
}

function goOn() {
  if (hasGoodNumbers()) answer(GO_ON);
}

function send() {
  const text = at("text").value;
  if (writing !== null || text.trim() === "" || !hasGoodNumbers()) return;
  setText("");
  answer(text);
}

/** Takes a turn: shows the answer as it is written, and keeps what came where it is stopped. */
async function answer(question) {
  edited = null;
  complain("");
  const turn = tree.take(question);
  writing = { turn, stop: new AbortController() };
  figures.start();
  show();
  say("Writing");
  try {
    await write(turn, writing.stop.signal);
    const note = cutNote(turn);
    say(`Answer: ${turn.answer}${note && ` (${note})`}`);
  } catch (error) {
    const isStopped = error.name === "AbortError";
    say(isStopped ? "Stopped" : "");
    if (!isStopped) complain(error.message);
    if (turn.answer === "") {
      tree.undo();
      setText(question);
    }
  }
  writing = null;
  show();
}

async function write(turn, signal) {
  if (models.length === 0) await listModels();
  const sampling = { temperature: at("temperature").valueAsNumber, max_output_tokens: at("max-tokens").valueAsNumber };
  turn.model = at("model").value;
  for (const fromTheBeginning of [false, true]) {
    const { previousId, messages: input } = tree.request(turn, turn.model, fromTheBeginning);
    const body = { model: turn.model, input, ...sampling };
    if (previousId !== null) body.previous_response_id = previousId;
    try {
      for await (const event of client.respond(body, signal)) take(turn, event);
      if (turn.responseId === null) throw new Error("the answer broke off");
      return;
    } catch (error) {
      const isForgotten = error instanceof ServerError && error.status === 404 && previousId !== null;
      if (!isForgotten || fromTheBeginning) throw error;
      say("This place is no longer kept; the conversation is read again");
    }
  }
}

function take(turn, event) {
  const fault = event.error ?? event.response?.error;
  if (fault) throw new Error(fault.message);
  if (event.type === "response.output_text.delta") {
    turn.answer += event.delta;
    messages.append(event.delta);
    figures.count();
  } else if (event.type === "response.completed" || event.type === "response.incomplete") {
    turn.responseId = event.response.id;
    turn.numTokens = event.response.usage.total_tokens;
    turn.limit = event.response.incomplete_details?.reason ?? null;
    figures.finish(event.response.usage);
  }
}

function stop() {
  writing?.stop.abort();
}

function setText(text) {
  at("text").value = text;
  fitText();
}

/** The field grows with its text; where the browser does that by itself, nothing is left to do. */
function fitText() {
  if (CSS.supports("field-sizing", "content")) return;
  at("text").rows = Math.min(8, at("text").value.split("\n").length);
}

function askForKey() {
  const dialog = at("key-dialog");
  at("key").value = dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve, reject) => {
    dialog.addEventListener("close", () => {
      if (dialog.returnValue === "use") resolve(at("key").value);
      else reject(new Error("this server needs an API key"));
    }, { once: true });
  });
}

/** Where the window is narrow, the tree and the figures stand in the place of the conversation. */
function openSide(isOpen) {
  document.body.classList.toggle("side-open", isOpen);
  at("show-side").setAttribute("aria-expanded", String(isOpen));
}

function startAnew(loaded) {
  tree = loaded;
  edited = null;
  complain("");
  openSide(false);
  show();
}

async function load(file) {
  try {
    startAnew(await openFile(client, file));
    say("Loaded");
  } catch (error) {
    complain(`${file.name} cannot be loaded: ${error.message}`);
  }
}

async function save() {
  complain("");
  try {
    await saveFile(client, tree);
    say("Saved");
  } catch (error) {
    complain(`The conversation cannot be saved: ${error.message}`);
  }
}

function listen() {
  at("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  at("text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  at("text").addEventListener("input", fitText);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || at("key-dialog").open) return;
    if (writing !== null) stop();
    else cancelEdit();
  });
  at("stop").addEventListener("click", stop);
  at("cancel-edit").addEventListener("click", cancelEdit);
  at("new").addEventListener("click", () => {
    if (tree.turns.length > 1 && !confirm("Begin a new conversation? This one is gone unless it was saved.")) return;
    startAnew(new Tree());
    at("text").focus();
  });
  at("save").addEventListener("click", save);
  at("load").addEventListener("click", () => at("file").click());
  at("file").addEventListener("change", () => {
    const [file] = at("file").files;
    at("file").value = "";
    if (file) load(file);
  });
  at("model").addEventListener("change", () => figures.setModel(models.find((model) => model.id === at("model").value)));
  at("show-side").addEventListener("click", () => openSide(!document.body.classList.contains("side-open")));
}

async function listModels() {
  models = await client.models();
  at("model").replaceChildren(...models.map((model) => new Option(model.id, model.id)));
  figures.setModel(models[0]);
}

async function start() {
  startTheme(at("theme"));
  listen();
  try {
    tree = Tree.fromJSON(JSON.parse(sessionStorage.getItem(TREE)));
  } catch {
    tree = new Tree();
  }
  show();
  try {
    await listModels();
    show();
    at("text").focus();
  } catch (error) {
    complain(`There is no model to talk to: ${error.message}`);
  }
}

start();
