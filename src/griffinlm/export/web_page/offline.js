// Everything is kept by a service worker, which also gives the page the headers that threads ask for.

const RELOADED = "griffin.reloaded";
/** What stood in the message's field when the page was loaded once more. */
const UNSENT = "griffin.unsent";

/** Waits until all files are kept. A page that came without the headers is loaded once more, from what is kept. */
export async function settle() {
  const { serviceWorker } = navigator;
  if (serviceWorker === undefined) return;
  serviceWorker.addEventListener("message", ({ data }) => showProgress(data));
  const registration = await serviceWorker.register("service_worker.js", { updateViaCache: "none" });
  const isKept = await Promise.race([serviceWorker.ready.then(() => true), failureOf(registration)]);
  const text = document.getElementById("text");
  text.value ||= sessionStorage.getItem(UNSENT) ?? "";
  sessionStorage.removeItem(UNSENT);
  if (!isKept || crossOriginIsolated || sessionStorage.getItem(RELOADED) !== null) return;
  sessionStorage.setItem(RELOADED, "yes");
  sessionStorage.setItem(UNSENT, text.value);
  location.reload();
  await new Promise(() => {});
}

/** False once the files cannot be kept, as where there is no room for them. */
function failureOf(registration) {
  return new Promise((resolve) => {
    const { installing } = registration;
    installing?.addEventListener("statechange", () => {
      if (installing.state === "redundant") resolve(registration.active !== null);
    });
  });
}

/** Tells, in the place of the model's name, how much of it has come. */
function showProgress({ numBytes, numBytesOfAll }) {
  const share = Math.floor((100 * numBytes) / numBytesOfAll);
  const model = document.getElementById("model");
  if (model.disabled) model.replaceChildren(new Option(`fetching, ${share}%`));
}
