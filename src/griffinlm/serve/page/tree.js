// The conversation as a tree of turns. No page, no network.

const KEYS_OF_A_TURN = ["parent", "question", "answer", "model", "responseId", "numTokens", "limit"];
/** The id of an answer that nobody keeps: the server does not know it, so the messages are sent again. */
const NOT_KEPT = "not-kept";
const NOTHING = { question: "", answer: "", model: null, responseId: null, numTokens: null, limit: null };

/**
 * One exchange. Turn 0 is the beginning and says nothing.
 * @typedef {{number: number, parent: number|null, question: string, answer: string,
 *            model: string|null, responseId: string|null, numTokens: number|null, limit: string|null}} Turn
 * `responseId` names what the server keeps, null where the answer was stopped; `numTokens` are those up to its end.
 * `limit` is what the server cut the answer at, `max_output_tokens` or `deadline`; null where the model ended it.
 */

export class Tree {
  constructor() {
    /** @type {Turn[]} In the order in which they were taken; a turn's number is its place. */
    this.turns = [{ number: 0, parent: null, ...NOTHING, numTokens: 0 }];
    this.currentNumber = 0;
  }

  get current() {
    return this.turns[this.currentNumber];
  }

  /** The turns from the first to the given one, without the beginning. */
  path(turn = this.current) {
    const found = [];
    for (let at = turn; at.parent !== null; at = this.turns[at.parent]) found.push(at);
    return found.reverse();
  }

  childrenOf(turn) {
    return this.turns.filter((other) => other.parent === turn.number);
  }

  /** The turns that say something else in the same place, this one among them. */
  siblingsOf(turn) {
    return turn.parent === null ? [turn] : this.childrenOf(this.turns[turn.parent]);
  }

  /** The last turn of the newest branch behind a turn. */
  tipOf(turn) {
    let tip = turn;
    for (let below = this.childrenOf(tip); below.length; below = this.childrenOf(tip)) tip = below[below.length - 1];
    return tip;
  }

  goTo(number) {
    if (this.turns[number] === undefined) throw new RangeError(`there is no turn ${number}`);
    this.currentNumber = number;
    return this.current;
  }

  /** A new turn behind the current one, which it becomes. */
  take(question) {
    const turn = { number: this.turns.length, parent: this.currentNumber, ...NOTHING, question };
    this.turns.push(turn);
    this.currentNumber = turn.number;
    return turn;
  }

  /** Takes back the newest turn, of which nothing came. */
  undo() {
    const turn = this.turns.pop();
    this.currentNumber = turn.parent;
  }

  /**
   * What is sent for a model's answer to a turn: the messages behind its nearest answer above that the server keeps, and
   * that one's id.
   * @returns {{previousId: string|null, messages: {role: string, content: string}[]}}
   */
  request(turn, model, fromTheBeginning = false) {
    const messages = [{ role: "user", content: turn.question }];
    for (const above of this.path(turn).slice(0, -1).reverse()) {
      const isKept = above.responseId !== null && above.model === model;
      if (isKept && !fromTheBeginning) return { previousId: above.responseId, messages };
      messages.unshift({ role: "user", content: above.question }, { role: "assistant", content: above.answer });
    }
    return { previousId: null, messages };
  }

  /** Turns and present one as a file of `griffinlm.conversation` has them. */
  told() {
    const turns = this.turns.slice(1).map(({ parent, question, answer }) => ({ parent, said: [question, answer] }));
    return { turns, current: this.currentNumber };
  }

  /** The tree of such turns, answered by `model`; `id` names what is kept of the present one. Throws where it is none. */
  static fromTold({ turns, current }, model, id = NOT_KEPT) {
    const told = turns.map(({ parent, said: [question, answer] }, index) => {
      const responseId = index + 1 === current ? id : NOT_KEPT;
      return { parent, question, answer, model, responseId, numTokens: null, limit: null };
    });
    return Tree.fromJSON({ turns: told, current });
  }

  toJSON() {
    const turns = this.turns.slice(1).map((turn) => Object.fromEntries(KEYS_OF_A_TURN.map((key) => [key, turn[key]])));
    return { turns, current: this.currentNumber };
  }

  /** The tree that `toJSON` wrote; throws where the value is none. */
  static fromJSON(value) {
    const tree = new Tree();
    if (value === null || typeof value !== "object" || !Array.isArray(value.turns)) throw new TypeError("there are no turns");
    for (const [index, stored] of value.turns.entries()) {
      const number = index + 1;
      if (!isTurn(stored, number)) throw new TypeError(`turn ${number} is damaged`);
      tree.turns.push({ number, ...Object.fromEntries(KEYS_OF_A_TURN.map((key) => [key, stored[key] ?? null])) });
    }
    if (!Number.isInteger(value.current) || tree.turns[value.current] === undefined) {
      throw new TypeError("it names no current turn");
    }
    tree.goTo(value.current);
    return tree;
  }
}

function isTurn(value, number) {
  return (
    value !== null && typeof value === "object" &&
    Number.isInteger(value.parent) && value.parent >= 0 && value.parent < number &&
    typeof value.question === "string" && typeof value.answer === "string" &&
    [value.model, value.responseId].every((name) => name === null || typeof name === "string") &&
    (value.numTokens === null || Number.isInteger(value.numTokens)) &&
    [undefined, null, "max_output_tokens", "deadline"].includes(value.limit)
  );
}
