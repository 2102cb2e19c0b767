// Files of states as `griffinlm.state` writes them: safetensors with the model's fingerprint and a checksum over all.

const FORMAT_VERSION = 1;
const METADATA = "griffinlm";

/** By the name that a type has in safetensors, and in a checksum. A float16 is kept as its two bytes. */
const TYPES = {
  F32: { dtype: "float32", of: Float32Array },
  F16: { dtype: "float16", of: Uint16Array },
  I8: { dtype: "int8", of: Int8Array },
  I32: { dtype: "int32", of: Int32Array },
  I64: { dtype: "int64", of: BigInt64Array },
};
const STORED_NAME = Object.fromEntries(Object.entries(TYPES).map(([name, { dtype }]) => [dtype, name]));

/**
 * @typedef {{dtype: string, shape: number[], data: ArrayBufferView}} NamedArray
 */

/** An empty array of a type's values. */
export function zeros(dtype, length) {
  return new TYPES[STORED_NAME[dtype]].of(length);
}

/**
 * The bytes of a file.
 * @param {Object<string, NamedArray>} arrays
 * @param {object} fingerprint of the model
 * @param {object} details a JSON value
 */
export async function seal(arrays, fingerprint, details) {
  const record = { fingerprint, checksum: await checksum(arrays, fingerprint, details), details };
  const header = { __metadata__: { [METADATA]: JSON.stringify(record) } };
  let offset = 0;
  for (const [name, { dtype, shape, data }] of Object.entries(arrays)) {
    header[name] = { dtype: STORED_NAME[dtype], shape, data_offsets: [offset, offset + data.byteLength] };
    offset += data.byteLength;
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const file = new Uint8Array(8 + Math.ceil(text.length / 8) * 8 + offset).fill(0x20, 8);
  const start = file.length - offset;
  new DataView(file.buffer).setBigUint64(0, BigInt(start - 8), true);
  file.set(text, 8);
  for (const [name, { data }] of Object.entries(arrays)) {
    file.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), start + header[name].data_offsets[0]);
  }
  return file;
}

/**
 * What `seal` was given, of a file of the same model; throws with words that say what is wrong.
 * @param {Uint8Array} file
 * @param {object} fingerprint of the model
 * @returns {Promise<{arrays: Object<string, NamedArray>, details: object}>}
 */
export async function unseal(file, fingerprint) {
  const { arrays, record } = parse(file);
  const found = { adapter: "", ...record.fingerprint };
  if (found.format_version !== FORMAT_VERSION) {
    throw new Error(`it has format version ${found.format_version}; this page reads ${FORMAT_VERSION}`);
  }
  if (record.checksum !== (await checksum(arrays, record.fingerprint, record.details))) {
    throw new Error("it is damaged: its checksum does not match its content");
  }
  const different = Object.keys(fingerprint).filter((name) => found[name] !== fingerprint[name]);
  if (different.length) throw new Error(`it belongs to another model: ${different.join(", ")} differ`);
  return { arrays, details: record.details };
}

function parse(file) {
  try {
    const size = Number(new DataView(file.buffer, file.byteOffset).getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(file.subarray(8, 8 + size)));
    const { __metadata__: metadata, ...places } = header;
    const record = JSON.parse(metadata[METADATA]);
    if (typeof record.fingerprint !== "object" || record.fingerprint === null) throw new TypeError("no fingerprint");
    const arrays = {};
    for (const [name, { dtype, shape, data_offsets: [start, stop] }] of Object.entries(places)) {
      // A copy, since an array of numbers may only begin at a multiple of their size.
      const bytes = file.slice(8 + size + start, 8 + size + stop);
      arrays[name] = { dtype: TYPES[dtype].dtype, shape, data: new TYPES[dtype].of(bytes.buffer) };
    }
    return { arrays, record };
  } catch {
    throw new Error("it is no file of griffinlm");
  }
}

/** SHA-256 over fingerprint, details and arrays, as `griffinlm.state` has it. */
async function checksum(arrays, fingerprint, details) {
  if (crypto.subtle === undefined) throw new Error("browsers compute checksums on https and localhost only");
  const encoder = new TextEncoder();
  const parts = [encoder.encode(pythonJson(fingerprint))];
  if (details !== undefined && details !== null) parts.push(encoder.encode(pythonJson(details)));
  for (const name of Object.keys(arrays).sort(byCodePoint)) {
    const { dtype, shape, data } = arrays[name];
    const written = shape.length === 1 ? `(${shape[0]},)` : `(${shape.join(", ")})`;
    parts.push(encoder.encode(`${name} ${dtype} ${written}`));
    parts.push(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  }
  const digest = await crypto.subtle.digest("SHA-256", await new Blob(parts).arrayBuffer());
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A value as Python's `json.dumps` writes it with sorted keys: ASCII, a space behind commas and colons. */
export function pythonJson(value) {
  if (Array.isArray(value)) return `[${value.map(pythonJson).join(", ")}]`;
  if (value !== null && typeof value === "object") {
    const names = Object.keys(value).sort(byCodePoint);
    return `{${names.map((name) => `${pythonJson(name)}: ${pythonJson(value[name])}`).join(", ")}}`;
  }
  const escaped = (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return JSON.stringify(value).replace(/[\x7f-\uffff]/g, escaped);
}

function byCodePoint(one, other) {
  const [left, right] = [[...one], [...other]];
  const index = left.findIndex((character, at) => character !== right[at]);
  if (index < 0) return left.length - right.length;
  return right[index] === undefined ? 1 : left[index].codePointAt(0) - right[index].codePointAt(0);
}
