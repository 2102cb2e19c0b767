// Sizes and speeds: the state beside a transformer's cache, and the last answer.

import { bytes, seconds, whole } from "./format.js";

export class Figures {
  /** @param {(id: string) => HTMLElement} at */
  constructor(at) {
    this.at = at;
    this.model = null;
    this.numTokens = 0;
  }

  /** @param {{state_bytes: number|null, attention_bytes_per_token: number}} model */
  setModel(model) {
    this.model = model ?? null;
    this.showLength(this.numTokens);
  }

  /** Shows the sizes at a length in tokens; null where it is not known, after an answer that was cut short. */
  showLength(numTokens) {
    this.numTokens = numTokens;
    this.at("length").textContent = numTokens === null ? "–" : `${whole(numTokens)} tokens`;
    const state = this.model?.state_bytes;
    if (!state) return;
    const cache = (numTokens ?? 0) * this.model.attention_bytes_per_token;
    const most = Math.max(state, cache);
    this.at("state-size").textContent = bytes(state);
    this.at("state-bar").style.setProperty("--share", String(state / most));
    this.at("cache-size").textContent = numTokens === null ? "–" : bytes(cache);
    this.at("cache-bar").style.setProperty("--share", String(cache / most));
    const crossing = Math.ceil(state / this.model.attention_bytes_per_token);
    this.at("memory-words").textContent =
      `The state stays as it is. A cache of every layer grows by ${bytes(this.model.attention_bytes_per_token)} a token` +
      ` and is larger from ${whole(crossing)} tokens on.`;
  }

  /** An answer was asked for. */
  start() {
    this.started = performance.now();
    this.firstCame = null;
    this.numPieces = 0;
    for (const id of ["speed", "first", "read"]) this.at(id).textContent = "–";
  }

  /** A piece came, which is about one token. */
  count() {
    const now = performance.now();
    if (this.firstCame === null) {
      this.firstCame = now;
      this.at("first").textContent = seconds((now - this.started) / 1000);
    }
    this.numPieces += 1;
    this.#showSpeed(this.numPieces, now);
  }

  /** The answer is whole. */
  finish(usage) {
    if (this.firstCame !== null) this.#showSpeed(usage.output_tokens, performance.now());
    const cached = usage.input_tokens_details?.cached_tokens ?? 0;
    this.at("read").textContent = `${whole(usage.input_tokens - cached)} of ${whole(usage.input_tokens)} tokens`;
  }

  /** The tokens behind the first by the time since it came. */
  #showSpeed(numTokens, now) {
    const past = (now - this.firstCame) / 1000;
    if (numTokens > 1 && past > 0) this.at("speed").textContent = `${((numTokens - 1) / past).toFixed(1)} tokens/s`;
  }
}
