// The model on ONNX Runtime: states go in and come out, nothing that it remembers is anywhere else.

import { zeros } from "./sealed.js";

const NEW = ".new";

/**
 * What the model remembers of one conversation: the arrays of `griffinlm.state`, one row of each.
 * @typedef {{numTokens: number, arrays: Object<string, Float32Array | Uint16Array | Int8Array>}} State
 */

export class Model {
  /**
   * @param {object} description what model.json says
   * @param {object} runtime ONNX Runtime's module
   * @param {object} session of the model's graph
   */
  constructor(description, runtime, session) {
    this.description = description;
    this.runtime = runtime;
    this.session = session;
  }

  /** A state that has read nothing. */
  newState() {
    const arrays = {};
    for (const { name, dtype, shape } of this.description.state) arrays[name] = zeros(dtype, product(shape));
    return { numTokens: 0, arrays };
  }

  /**
   * Brings a state forward by tokens and gives the logits behind the last one.
   * @param {State} state
   * @param {number[]} tokens at least one
   * @returns {Promise<Float32Array>} [vocabulary]
   */
  async read(state, tokens) {
    let logits = null;
    const most = this.description.max_chunk_tokens;
    for (let start = 0; start < tokens.length; start += most) {
      logits = await this.#call(state, tokens.slice(start, start + most));
    }
    return logits;
  }

  async #call(state, tokens) {
    const positions = tokens.map((_, index) => state.numTokens + index);
    const inputs = {
      token_ids: this.#whole(tokens, [1, tokens.length]),
      positions: this.#whole(positions, [1, tokens.length]),
      num_before: this.#whole([state.numTokens], [1]),
      logit_index: this.#whole([0, tokens.length - 1], [1, 2]),
    };
    for (const entry of this.description.state) inputs[entry.name] = this.#input(entry, state);
    const outputs = await this.session.run(inputs);
    for (const entry of this.description.state) keep(entry, state, positions, outputs[entry.name + NEW]);
    state.numTokens += tokens.length;
    return outputs.logits.data;
  }

  /** An array of the state as the graph takes it: of a ring only the slots that can hold anything. */
  #input({ name, dtype, shape, is_ring: isRing }, state) {
    const data = state.arrays[name];
    if (!isRing) return this.#tensor(dtype, data, shape);
    const step = this.description.ring_step_slots;
    const numUsed = Math.min(shape[1], Math.max(1, Math.ceil(state.numTokens / step)) * step);
    const used = [1, numUsed, ...shape.slice(2)];
    return this.#tensor(dtype, data.subarray(0, product(used)), used);
  }

  #tensor(dtype, data, shape) {
    // Where the browser knows half precision, the runtime takes it in no other form.
    const isHalf = dtype === "float16" && globalThis.Float16Array !== undefined;
    const given = isHalf ? new Float16Array(data.buffer, data.byteOffset, data.length) : data;
    return new this.runtime.Tensor(dtype, given, shape);
  }

  #whole(numbers, shape) {
    return new this.runtime.Tensor("int64", BigInt64Array.from(numbers, BigInt), shape);
  }
}

/** A copy that lives on its own. */
export function copyOf(state) {
  const arrays = Object.entries(state.arrays).map(([name, array]) => [name, array.slice()]);
  return { numTokens: state.numTokens, arrays: Object.fromEntries(arrays) };
}

/** Writes what a call gave: all of an array, or of a ring the rows of tokens, that of position p into slot p modulo S. */
function keep({ name, shape, is_ring: isRing }, state, positions, { data }) {
  const array = state.arrays[name];
  const values = array instanceof Uint16Array ? new Uint16Array(data.buffer, data.byteOffset, data.length) : data;
  if (!isRing) {
    array.set(values);
    return;
  }
  const numSlots = shape[1];
  const size = product(shape.slice(2));
  for (let index = Math.max(0, positions.length - numSlots); index < positions.length; index += 1) {
    array.set(values.subarray(index * size, (index + 1) * size), (positions[index] % numSlots) * size);
  }
}

function product(shape) {
  return shape.reduce((size, length) => size * length, 1);
}
