// Keeps all files of one export, so that the page works offline and never mixes the files of two.
// `files.js` is written by the export: `version`, and the bytes and type of every file by its path.

importScripts("files.js");

const { version, files, policy } = self.EXPORTED;
const OURS = `griffin ${registration.scope} `;
const HEADERS = {
  "content-security-policy": policy,
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-embedder-policy": "require-corp",
  "cross-origin-resource-policy": "same-origin",
  "referrer-policy": "no-referrer",
  "x-content-type-options": "nosniff",
};

addEventListener("install", (event) => {
  skipWaiting();
  event.waitUntil(keepAll());
});

addEventListener("activate", (event) => event.waitUntil(begin()));

addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  if (method === "GET" && url.startsWith(registration.scope)) event.respondWith(answer(event.request));
});

async function keepAll() {
  const cache = await caches.open(OURS + version);
  const numBytesOfAll = Object.values(files).reduce((sum, { bytes }) => sum + bytes, 0);
  let numBytes = 0;
  for (const [path, { type, bytes }] of Object.entries(files)) {
    const response = await fetch(path, { cache: "no-cache" });
    if (!response.ok) throw new Error(`${path} cannot be fetched: ${response.status}`);
    await cache.put(path, new Response(response.body, { headers: { ...HEADERS, "content-type": type } }));
    numBytes += bytes;
    const pages = await clients.matchAll({ includeUncontrolled: true });
    for (const page of pages) page.postMessage({ numBytes, numBytesOfAll });
  }
}

/** Forgets the files of earlier exports to the same place, and answers for pages that are open. */
async function begin() {
  const names = (await caches.keys()).filter((name) => name.startsWith(OURS) && name !== OURS + version);
  await Promise.all(names.map((name) => caches.delete(name)));
  await clients.claim();
}

async function answer(request) {
  const path = request.mode === "navigate" && request.url.replace(/[?#].*/, "") === registration.scope;
  const cache = await caches.open(OURS + version);
  return (await cache.match(path ? "index.html" : request, { ignoreSearch: true })) ?? fetch(request);
}
