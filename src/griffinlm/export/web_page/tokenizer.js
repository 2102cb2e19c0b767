// Text and conversations to token ids and back, as `griffinlm.text.Tokenizer` does it: byte-level BPE and Gemma's format.

/** What the words of a text are to the BPE, which never joins two of them. */
const WORDS =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;
/** What `strip` of Python takes off, which is not what `trim` does. */
const SPACE = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]+";
const OUTER_SPACE = new RegExp(`^${SPACE}|${SPACE}$`, "g");
const WORDS_KEPT = 20_000;

export class Tokenizer {
  /**
   * @param {{model: {vocab: Object<string, number>, merges: (string | string[])[]}}} file what tokenizer.json holds
   * @param {{bos_id: number|null, end_ids: number[], control: Object<string, number>}} settings
   */
  constructor(file, settings) {
    this.bosId = settings.bos_id;
    this.endIds = new Set(settings.end_ids);
    this.control = settings.control;
    this.controlIds = new Set(Object.values(settings.control));
    this.ids = new Map(Object.entries(file.model.vocab));
    this.ranks = new Map(file.model.merges.map((pair, rank) => [typeof pair === "string" ? pair : pair.join(" "), rank]));
    this.bytes = bytesByCharacter();
    this.characters = [...this.bytes.keys()].sort((one, other) => this.bytes.get(one) - this.bytes.get(other));
    this.tokens = [];
    for (const [token, id] of this.ids) this.tokens[id] = token;
    const literals = Object.keys(this.control).map((name) => name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    this.literalStarts = new RegExp(`(?=${literals.join("|")})`, "g");
    this.words = new Map();
  }

  /** Ids of a text: no control token whatever it says. A text that spells one is cut behind the first character of it. */
  encode(text) {
    const whole = text.toWellFormed();
    const cuts = [...whole.matchAll(this.literalStarts)].map((match) => match.index + 1);
    const ids = [];
    for (const [index, stop] of [...cuts, whole.length].entries()) {
      const piece = whole.slice(index ? cuts[index - 1] : 0, stop);
      for (const [word] of piece.matchAll(WORDS)) ids.push(...this.#word(word));
    }
    return ids;
  }

  /** Ids of a conversation between user and assistant, BOS first and only there. */
  encodeChat(messages, addGenerationPrompt = true) {
    const [start, end] = [this.control["<start_of_turn>"], this.control["<end_of_turn>"]];
    const ids = this.bosId === null ? [] : [this.bosId];
    for (const { role, content } of messages) {
      const name = role === "assistant" ? "model" : "user";
      ids.push(start, ...this.encode(`${name}\n${content.toWellFormed().replace(OUTER_SPACE, "")}`), end, ...this.encode("\n"));
    }
    if (addGenerationPrompt) ids.push(start, ...this.encode("model\n"));
    return ids;
  }

  /** A decoder that takes one id at a time: the pieces joined are the text of all. */
  stream() {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    return {
      push: (id) => decoder.decode(this.#bytesOf(id), { stream: true }),
      finish: () => decoder.decode(),
    };
  }

  #bytesOf(id) {
    if (this.controlIds.has(id)) return new Uint8Array(0);
    return Uint8Array.from(this.tokens[id], (character) => this.bytes.get(character));
  }

  #word(word) {
    let ids = this.words.get(word);
    if (ids === undefined) {
      ids = this.#merged(word).map((symbol) => this.ids.get(symbol));
      if (this.words.size >= WORDS_KEPT) this.words.clear();
      this.words.set(word, ids);
    }
    return ids;
  }

  /** The symbols of a word: of the pairs beside each other the one of lowest rank is joined wherever it stands. */
  #merged(word) {
    let symbols = Array.from(new TextEncoder().encode(word), (byte) => this.characters[byte]);
    for (;;) {
      let [best, first, second] = [Infinity, "", ""];
      for (let index = 1; index < symbols.length; index += 1) {
        const rank = this.ranks.get(`${symbols[index - 1]} ${symbols[index]}`) ?? Infinity;
        if (rank < best) [best, first, second] = [rank, symbols[index - 1], symbols[index]];
      }
      if (best === Infinity) return symbols;
      const joined = [];
      for (let index = 0; index < symbols.length; index += 1) {
        const isPair = symbols[index] === first && symbols[index + 1] === second;
        joined.push(isPair ? first + second : symbols[index]);
        if (isPair) index += 1;
      }
      symbols = joined;
    }
  }
}

/** Byte-level BPE writes every byte as one character: itself where it prints in Latin-1, else one from U+0100 on. */
function bytesByCharacter() {
  const found = new Map();
  let numOthers = 0;
  for (let byte = 0; byte < 256; byte += 1) {
    const prints = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    found.set(String.fromCharCode(prints ? byte : 256 + numOthers), byte);
    if (!prints) numOthers += 1;
  }
  return found;
}
