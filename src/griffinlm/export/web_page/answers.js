// Answers to conversations, and the states behind them: `griffinlm.conversation` in the browser.

import { copyOf } from "./model.js";
import { seal, unseal } from "./sealed.js";

const KEPT_BYTES = 256 << 20;
const TOKEN_IDS = "conversation.token_ids";
const NOTHING_PENDING = -1n;

/** A conversation that is no longer kept; whoever asked tells it from the beginning. */
export class ForgottenError extends Error {}

/**
 * A point to go on from: the tokens read, what the model remembers of them, and what was said up to there.
 * @typedef {{tokens: number[], state: import("./model.js").State, messages: {role: string, content: string}[]}} Place
 */

export class Answers {
  constructor(model, tokenizer) {
    this.model = model;
    this.tokenizer = tokenizer;
    /** @type {Map<string, Place>} By the id of the answer behind which they lie, the one used last at the end. */
    this.places = new Map();
    this.numKept = 0;
  }

  /**
   * Writes an answer, as the events of the server's `v1/responses`.
   * @param {{previous_response_id?: string, input: object[], temperature: number, max_output_tokens: number}} request
   * @param {() => Promise<boolean>} isStopped asked between tokens
   */
  async *respond(request, isStopped) {
    const messages = [...this.#messagesUpTo(request.previous_response_id), ...request.input];
    const ids = this.tokenizer.encodeChat(messages);
    const start = this.#nearest(ids);
    const state = start === null ? this.model.newState() : copyOf(start.state);
    const numCached = state.numTokens;
    if (ids.length - 1 > numCached) await this.model.read(state, ids.slice(numCached, -1));
    const before = { tokens: ids.slice(0, -1), state: copyOf(state) };
    let logits = await this.model.read(state, ids.slice(-1));
    const written = [];
    const text = this.tokenizer.stream();
    let answer = "";
    let isWhole = false;
    for (;;) {
      const token = this.#choose(logits, request.temperature);
      written.push(token);
      isWhole = this.tokenizer.endIds.has(token);
      const isLast = isWhole || written.length >= request.max_output_tokens;
      const delta = text.push(token) + (isLast ? text.finish() : "");
      answer += delta;
      if (delta) yield { type: "response.output_text.delta", delta };
      if (isLast) break;
      if (await isStopped()) return;
      logits = await this.model.read(state, [token]);
    }
    const said = [...messages, { role: "assistant", content: answer }];
    const tokens = [...ids, ...written.slice(0, -1)];
    const isOnTheWay = isPrefix(tokens, this.tokenizer.encodeChat(said, false));
    const id = this.#keep({ ...(isOnTheWay ? { tokens, state } : before), messages: said });
    const usage = {
      input_tokens: ids.length,
      input_tokens_details: { cached_tokens: numCached },
      output_tokens: written.length,
      total_tokens: ids.length + written.length,
    };
    const details = isWhole ? null : { reason: "max_output_tokens" };
    const type = isWhole ? "response.completed" : "response.incomplete";
    yield { type, response: { id, usage, incomplete_details: details } };
  }

  /**
   * The file of a conversation, which the terminal, Python and this page read.
   * @param {{turns: {parent: number, said: [string, string]}[], current: number}} told
   * @param {string|null} id of the answer at the present turn; without its state the messages are read again later
   */
  async save(told, id) {
    const place = this.places.get(id);
    const arrays = {};
    if (place !== undefined) {
      arrays[TOKEN_IDS] = { dtype: "int32", shape: [place.tokens.length], data: Int32Array.from(place.tokens) };
      for (const [name, number] of [["num_tokens", BigInt(place.state.numTokens)], ["pending", NOTHING_PENDING]]) {
        arrays[name] = { dtype: "int64", shape: [1], data: BigInt64Array.of(number) };
      }
      for (const { name, dtype, shape } of this.model.description.state) {
        arrays[name] = { dtype, shape, data: place.state.arrays[name] };
      }
    }
    return seal(arrays, this.model.description.fingerprint, told);
  }

  /**
   * Takes over the conversation of a file; throws with words that say why it cannot be.
   * @param {Uint8Array} file
   * @returns {Promise<{turns: object[], current: number, id: string|null}>} with the id of the present turn's state
   */
  async open(file) {
    const { arrays, details } = await unseal(file, this.model.description.fingerprint);
    if (!isTold(details)) throw new Error("it is no conversation");
    let id = null;
    if (Object.keys(arrays).length) {
      const { tokens, state } = this.#unpacked(arrays);
      id = this.#keep({ tokens, state, messages: messagesOf(details.turns, details.current) });
    }
    return { turns: details.turns, current: details.current, id };
  }

  #unpacked({ [TOKEN_IDS]: listed, num_tokens: numTokens, pending, ...arrays }) {
    const { state } = this.model.description;
    const fits = ({ name, dtype, shape }) =>
      arrays[name]?.dtype === dtype && JSON.stringify(arrays[name].shape) === JSON.stringify(shape);
    if (!state.every(fits) || Object.keys(arrays).length !== state.length || pending?.data[0] !== NOTHING_PENDING) {
      throw new Error("it does not have the arrays of this model");
    }
    const tokens = Array.from(listed?.data ?? []);
    if (BigInt(tokens.length) !== numTokens?.data[0]) throw new Error("it has a state of other tokens than it lists");
    const kept = Object.fromEntries(state.map(({ name }) => [name, arrays[name].data]));
    return { tokens, state: { numTokens: tokens.length, arrays: kept } };
  }

  #messagesUpTo(id) {
    if (id === undefined || id === null) return [];
    const place = this.places.get(id);
    if (place === undefined) throw new ForgottenError("this place of the conversation is no longer kept");
    return place.messages;
  }

  /** The place with the most tokens of those that lie on the way to `ids`. */
  #nearest(ids) {
    let found = null;
    for (const [id, place] of this.places) {
      const isLonger = place.tokens.length > (found === null ? 0 : this.places.get(found).tokens.length);
      if (isLonger && place.tokens.length < ids.length && isPrefix(place.tokens, ids)) found = id;
    }
    return found === null ? null : this.#used(found);
  }

  #used(id) {
    const place = this.places.get(id);
    this.places.delete(id);
    this.places.set(id, place);
    return place;
  }

  /** Keeps a place; beyond the budget the one used longest ago goes. */
  #keep(place) {
    this.numKept += 1;
    // Those of an earlier load of the page must not be taken for these.
    const id = `local-${performance.timeOrigin}-${this.numKept}`;
    this.places.set(id, place);
    const most = Math.max(1, Math.floor(KEPT_BYTES / this.model.description.state_bytes));
    while (this.places.size > most) this.places.delete(this.places.keys().next().value);
    return id;
  }

  /** The best token, or where the temperature is above 0 one drawn by softmax(logits / temperature). */
  #choose(logits, temperature) {
    const choices = logits.subarray(0, this.model.description.num_choices);
    let best = 0;
    for (let token = 1; token < choices.length; token += 1) if (choices[token] > choices[best]) best = token;
    if (!Number.isFinite(choices[best])) throw new Error(`the best logit is ${choices[best]}; it must be finite`);
    if (temperature === 0) return best;
    const weights = Float64Array.from(choices, (logit) => Math.exp((logit - choices[best]) / temperature));
    let left = Math.random() * weights.reduce((sum, weight) => sum + weight, 0);
    const drawn = weights.findIndex((weight) => (left -= weight) < 0);
    return drawn < 0 ? best : drawn;
  }
}

function isPrefix(tokens, of) {
  return tokens.length <= of.length && tokens.every((token, index) => token === of[index]);
}

/** The messages from the beginning to a turn. */
function messagesOf(turns, current) {
  const messages = [];
  for (let number = current; number !== 0; number = turns[number - 1].parent) {
    const [question, answer] = turns[number - 1].said;
    messages.unshift({ role: "user", content: question }, { role: "assistant", content: answer });
  }
  return messages;
}

function isTold(details) {
  if (!Array.isArray(details?.turns) || !Number.isInteger(details.current)) return false;
  const isTurn = ({ parent, said }, index) =>
    Number.isInteger(parent) && parent >= 0 && parent <= index &&
    Array.isArray(said) && said.length === 2 && said.every((text) => typeof text === "string");
  return details.current >= 0 && details.current <= details.turns.length &&
    details.turns.every((turn, index) => turn !== null && typeof turn === "object" && isTurn(turn, index));
}
