// The thread that computes. It takes {id, method, value}, and gives {id, event} for every event, then {id, result} or
// {id, error}.

import { Answers, ForgottenError } from "./answers.js";
import { Model } from "./model.js";
import { Tokenizer } from "./tokenizer.js";

const MOST_THREADS = 4;
/** What ONNX Runtime tells the console of; it takes warnings for errors too. */
const ERRORS = 3;
const stopped = new Set();
const loading = load();

const METHODS = {
  describe: async () => (await loading).model.description,
  respond: async (request, id) => {
    for await (const event of (await loading).respond(request, () => isStopped(id))) postMessage({ id, event });
  },
  save: async ({ told, placeId }) => (await loading).save(told, placeId),
  open: async (file) => (await loading).open(file),
};

addEventListener("message", async ({ data: { id, method, value } }) => {
  if (method === "stop") {
    stopped.add(id);
    return;
  }
  try {
    postMessage({ id, result: await METHODS[method](value, id) });
  } catch (error) {
    postMessage({ id, error: error.message, isForgotten: error instanceof ForgottenError });
  }
  stopped.delete(id);
});

async function load() {
  const [description, file] = await Promise.all(["model/model.json", "model/tokenizer.json"].map(fetchJson));
  const hasGpu = description.has_webgpu && (await navigator.gpu?.requestAdapter().catch(() => null));
  const provider = hasGpu ? "webgpu" : "wasm";
  const runtime = await import(`./runtime/ort.${provider}.min.mjs`);
  runtime.env.wasm.wasmPaths = new URL("runtime/", location.href).href;
  runtime.env.wasm.numThreads = crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency) : 1;
  const place = (name) => new URL(`model/${name}`, location.href).href;
  const session = await runtime.InferenceSession.create(place(description.graph), {
    executionProviders: [provider],
    logSeverityLevel: ERRORS,
    externalData: [{ path: description.weights, data: place(description.weights) }],
  });
  return new Answers(new Model(description, runtime, session), new Tokenizer(file, description.tokenizer));
}

async function fetchJson(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path} cannot be fetched: ${response.status}`);
  return response.json();
}

/** Lets messages in that came while the model computed. */
function isStopped(id) {
  const { port1, port2 } = new MessageChannel();
  return new Promise((resolve) => {
    port1.onmessage = () => {
      port1.close();
      resolve(stopped.has(id));
    };
    port2.postMessage(null);
  });
}
