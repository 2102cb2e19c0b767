// What the page asks of the server:
//
//   GET  v1/models               data: [{id, state_bytes, attention_bytes_per_token}]; an adapter is a model MODEL:ADAPTER
//   POST v1/responses            streamed; the last event has the response's id and usage
//   GET  v1/states/ID/download   the signed bytes of a state, which is what a response's id names too
//   POST v1/states/upload        takes them back, on any server with the same key

const KEY = "griffin.key";

/** An answer of the server that is a refusal; `parameter` names the field that is at fault. */
export class ServerError extends Error {
  constructor(status, message, parameter) {
    super(message);
    this.status = status;
    this.parameter = parameter;
  }
}

export class Client {
  /** @param {() => Promise<string>} askForKey */
  constructor(askForKey) {
    this.askForKey = askForKey;
  }

  /** Models and their adapters, each with the sizes that it tells. */
  async models() {
    return (await (await this.#fetch("v1/models")).json()).data;
  }

  /** Writes an answer: gives the server's events one by one until its last. */
  async *respond(body, signal) {
    const response = await this.#fetch("v1/responses", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ ...body, stream: true, store: true }),
      signal,
    });
    yield* events(response.body);
  }

  /** The signed bytes of what the server keeps under an id. */
  async download(id) {
    return (await this.#fetch(`v1/states/${encodeURIComponent(id)}/download`)).blob();
  }

  /** Gives signed bytes back to the server. */
  async upload(state) {
    await this.#fetch("v1/states/upload", {
      method: "POST",
      headers: { "content-type": "application/octet-stream" },
      body: state,
    });
  }

  async #fetch(path, options = {}) {
    for (;;) {
      const key = sessionStorage.getItem(KEY);
      const headers = { ...options.headers, ...(key === null ? {} : { authorization: `Bearer ${key}` }) };
      const response = await fetch(path, { ...options, headers });
      if (response.ok) return response;
      if (response.status === 401) {
        sessionStorage.setItem(KEY, await this.askForKey());
        continue;
      }
      throw await refusal(response);
    }
  }
}

/** The data of server-sent events, parsed, as they come. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (waiting + value).split(/\r?\n\r?\n/);
      waiting = blocks.pop();
      for (const block of blocks) {
        const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        const data = lines.map((line) => line.slice(5).trimStart()).join("\n");
        if (data === "[DONE]") return;
        if (data) yield JSON.parse(data);
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

async function refusal(response) {
  try {
    const { error } = await response.json();
    return new ServerError(response.status, error.message, error.param);
  } catch {
    return new ServerError(response.status, `the server answered ${response.status}`, null);
  }
}
