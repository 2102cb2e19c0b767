// What the page asks of the model in the thread beside it, in the words in which it would ask a server.

import { settle } from "./offline.js";

/** A refusal; 404 where an answer is no longer kept. */
export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class Client {
  #calls = new Map();
  #numCalls = 0;
  #worker = null;
  #started = null;

  /** The model, once it is loaded. */
  async models() {
    this.#started ??= this.#start();
    await this.#started;
    const description = await this.#ask("describe");
    return [{ ...description, id: description.name }];
  }

  /** Writes an answer: gives events one by one until the last. */
  async *respond(body, signal) {
    const events = [];
    let wake = () => {};
    let isDone = false;
    const call = this.#call("respond", body, (event) => {
      events.push(event);
      wake();
    });
    const stop = () => this.#worker.postMessage({ id: call.id, method: "stop" });
    signal.addEventListener("abort", stop, { once: true });
    const ended = call.ended.finally(() => {
      isDone = true;
      wake();
    });
    ended.catch(() => {});
    for (;;) {
      while (events.length) yield events.shift();
      if (isDone) break;
      await new Promise((resolve) => (wake = resolve));
    }
    signal.removeEventListener("abort", stop);
    await ended;
    signal.throwIfAborted();
  }

  /** The file of a conversation; `placeId` is the present turn's, or null. */
  save(told, placeId) {
    return this.#ask("save", { told, placeId });
  }

  /** Takes a file's conversation over. */
  open(file) {
    return this.#ask("open", file);
  }

  async #start() {
    await settle();
    this.#worker = new Worker("worker.js", { type: "module" });
    this.#worker.addEventListener("message", ({ data }) => this.#calls.get(data.id)(data));
    this.#worker.addEventListener("error", (event) => this.#fail(event.message || "the model cannot be loaded"));
  }

  #ask(method, value) {
    return this.#call(method, value, () => {}).ended;
  }

  #call(method, value, onEvent) {
    const id = (this.#numCalls += 1);
    const ended = new Promise((resolve, reject) => {
      this.#calls.set(id, ({ event, result, error, isForgotten }) => {
        if (event !== undefined) {
          onEvent(event);
          return;
        }
        this.#calls.delete(id);
        if (error === undefined) resolve(result);
        else reject(new ServerError(isForgotten ? 404 : 500, error));
      });
    });
    this.#worker.postMessage({ id, method, value });
    return { id, ended };
  }

  #fail(message) {
    for (const answer of [...this.#calls.values()]) answer({ error: message });
  }
}
