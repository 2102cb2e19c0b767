"""The exported page in a real browser: the same tokens, states and files as Python, and no other host."""

import http.server
import json
import re
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import griffinlm
from griffinlm.conversation import Conversation
from griffinlm.export import ExportError, export_web

playwright = pytest.importorskip("playwright.sync_api")

NUM_TOKENS = 50
QUESTIONS = ("Tell me a story.", "Write about the sea and its animals.", "What is the history of Rome?")
"""To all of these, as first ones, the answer is longer than `NUM_TOKENS`."""
STEPS = 10
OF_THE_BROWSER = ("google.com", "googleapis.com", "gstatic.com", "gvt1.com")
"""Hosts that Chromium asks on its own account, whatever page is open."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    if shutil.which("npm") is None:
        pytest.skip("needs npm")
    directory = tmp_path_factory.mktemp("export") / "page"
    try:
        export_web("eyas", directory)
    except ExportError as error:
        if "npm cannot fetch" not in str(error):
            raise
        pytest.skip(f"needs npm's registry or cache: {error}")
    return directory


@pytest.fixture
def page(exported, serve, open_page):
    """The page, at greedy answers of `NUM_TOKENS` tokens."""
    return greedy(open_page(serve(exported).url))


@pytest.fixture(scope="module")
def model() -> griffinlm.LanguageModel:
    return griffinlm.load("eyas", threads=1)


def greedy(page, max_tokens: int = NUM_TOKENS):
    page.click("summary")
    page.fill("#temperature", "0")
    page.fill("#max-tokens", str(max_tokens))
    return page


def say(page, text: str) -> str:
    page.fill("#text", text)
    page.press("#text", "Enter")
    page.wait_for_selector("#send:visible", timeout=120_000)
    assert page.locator("#notice").text_content() == ""
    return page.locator(".answer .said").last.text_content()


def save(page, path: Path) -> Path:
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(path)
    return path


def python_conversation(model, path: Path | None = None) -> Conversation:
    options = {"temperature": 0, "max_tokens": NUM_TOKENS}
    return Conversation(model, **options) if path is None else Conversation.load(path, model, **options)


def content_of(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Type, shape and bytes of every array in a conversation's file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    arrays = {}
    for name, place in header.items():
        if name != "__metadata__":
            start, stop = (8 + size + offset for offset in place["data_offsets"])
            arrays[name] = place["dtype"], place["shape"], data[start:stop]
    return arrays


def test_the_first_tokens_are_pythons(page, model, tmp_path):
    told = python_conversation(model)
    for question in QUESTIONS:
        page.click("#tree [role=treeitem]:first-child")
        told.go_to(0)
        assert say(page, question) == "".join(told.say(question))
        assert told.latest is not None
        assert len(told.latest.token_ids) == NUM_TOKENS
        ours = content_of(save(page, tmp_path / "page"))
        told.save(tmp_path / "python")
        theirs = content_of(tmp_path / "python")
        assert {name: array[:2] for name, array in ours.items()} == {name: array[:2] for name, array in theirs.items()}
        assert ours["conversation.token_ids"] == theirs["conversation.token_ids"]


def test_a_conversation_of_the_page_goes_on_in_python_and_back(page, model, tmp_path):
    first = say(page, QUESTIONS[0])
    there = python_conversation(model, save(page, tmp_path / "page"))
    assert there.num_kept == 1
    assert [message["content"] for message in there.messages] == [QUESTIONS[0], first]
    second = "".join(there.say(QUESTIONS[1]))
    assert say(page, QUESTIONS[1]) == second
    there.save(tmp_path / "python")
    third = "".join(there.say(QUESTIONS[2]))
    page.set_input_files("#file", tmp_path / "python")
    playwright.expect(page.locator("#status")).to_have_text("Loaded")
    assert page.locator(".answer .said").all_text_contents() == [first, second]
    assert say(page, QUESTIONS[2]) == third
    anew, whole = (int(found) for found in re.findall(r"\d+", page.locator("#read").text_content()))
    assert anew < 30 < whole


def test_a_state_passes_through_the_page_bit_for_bit(page, model, tmp_path):
    told = python_conversation(model)
    "".join(told.say('The hawk said \x7f\u2028 “hé” \U0001f985 <eos>\\" and flew.' * 30))
    told.go_to(0)
    "".join(told.say("Другой ветвь\n\ttoo"))
    told.go_to(1)
    told.save(tmp_path / "python")
    page.set_input_files("#file", tmp_path / "python")
    playwright.expect(page.locator("#tree li")).to_have_count(3)
    returned = python_conversation(model, save(page, tmp_path / "page"))
    assert content_of(tmp_path / "page") == content_of(tmp_path / "python")
    assert [turn.messages for turn in returned.turns] == [turn.messages for turn in told.turns]
    assert returned.current.number == 1


def test_a_conversation_longer_than_the_window_is_pythons(page, model):
    text = "The hawk flies over the hill and the river, and it sees a small mouse. " * 40
    told = python_conversation(model)
    assert say(page, text) == "".join(told.say(text))
    assert told.num_tokens > model.config.attention.window_tokens
    assert say(page, "And then?") == "".join(told.say("And then?"))


def test_files_that_are_not_of_this_model_are_refused(page, model, tmp_path):
    other = griffinlm.load("eyas", threads=1, window_dtype="float16")
    python_conversation(other).save(tmp_path / "other")
    told = python_conversation(model)
    "".join(told.say("one"))
    told.save(tmp_path / "whole")
    damaged = bytearray((tmp_path / "whole").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "damaged").write_bytes(damaged)
    (tmp_path / "text").write_text("{no conversation}\n")
    told.state.save(tmp_path / "state")
    for name, words in [
        ("other", "belongs to another model: window_dtype differ"),
        ("damaged", "is damaged"),
        ("text", "is no file of griffinlm"),
        ("state", "is no conversation"),
    ]:
        page.set_input_files("#file", tmp_path / name)
        playwright.expect(page.locator("#notice")).to_contain_text(words)
        assert page.locator(".question").count() == 0


def test_a_conversation_without_a_state_is_read_again(page, model, tmp_path):
    told = python_conversation(model)
    "".join(told.say(QUESTIONS[0]))
    "".join(told.say(QUESTIONS[1]))
    told.save(tmp_path / "python")
    page.set_input_files("#file", tmp_path / "python")
    playwright.expect(page.locator("#tree li")).to_have_count(3)
    page.click("#tree [role=treeitem]:nth-child(2)")
    there = python_conversation(model, save(page, tmp_path / "page"))
    assert there.num_kept == 0
    assert there.current.number == 1
    assert say(page, QUESTIONS[2]) == "".join(there.say(QUESTIONS[2]))


def test_an_edited_message_reads_only_what_is_new(page):
    say(page, "The hawk flies over the hill and the river. " * 8)
    say(page, "What does it see?")
    page.click("[aria-label='Edit turn 2']")
    say(page, "Where to?")
    anew, whole = (int(found) for found in re.findall(r"\d+", page.locator("#read").text_content()))
    assert anew < 40 < whole
    assert page.locator("#tree li").count() == 4


def test_a_stopped_answer_is_kept(exported, serve, open_page, tmp_path):
    directory = Path(shutil.copytree(exported, tmp_path / "page"))
    description = json.loads((directory / "model" / "model.json").read_text(encoding="utf-8"))
    # Only the reader ends an answer here, however long the click takes.
    description["tokenizer"]["end_ids"] = []
    (directory / "model" / "model.json").write_text(json.dumps(description), encoding="utf-8")
    page = greedy(open_page(serve(directory).url), 100_000)
    page.fill("#text", "Once upon a time")
    page.press("#text", "Enter")
    playwright.expect(page.locator(".answer .said")).to_have_text(re.compile(".{20}", re.DOTALL), timeout=60_000)
    page.press("#text", "Escape")
    page.wait_for_selector("#send:visible")
    assert page.locator(".note").text_content() == "cut short"
    page.fill("#max-tokens", "5")
    assert say(page, "And then?")


def test_the_size_of_the_state_and_the_speed_are_shown(page, model):
    say(page, QUESTIONS[1])
    assert page.locator("#state-size").text_content() == f"{model.new_state().nbytes / 1000:.0f} kB"
    assert float(page.locator("#speed").text_content().removesuffix(" tokens/s")) > 0
    before = page.locator("#state-size").text_content()
    say(page, "word " * 400)
    assert page.locator("#state-size").text_content() == before


def test_the_page_works_without_its_server(exported, serve, open_page):
    site = serve(exported)
    page = greedy(open_page(site.url))
    answer = say(page, QUESTIONS[0])
    site.close()
    other = page.context.new_page()
    other.goto(site.url)
    other.wait_for_selector("#model:enabled")
    assert other.evaluate("crossOriginIsolated")
    assert say(greedy(other), QUESTIONS[0]) == answer


def test_what_was_written_while_the_files_came_is_still_there(exported, serve, browser):
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(serve(exported).url)
        page.fill("#text", "The hawk")
        page.wait_for_selector("#model:enabled")
        assert page.evaluate("crossOriginIsolated")
        assert page.input_value("#text") == "The hawk"


UNTIL_NEW = """async () => {
  for (;;) {
    const names = await caches.keys();
    if (names.length === 1 && names[0].includes(" new")) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}"""


def test_a_new_export_takes_the_place_of_the_old_one(exported, serve, open_page, tmp_path):
    directory = Path(shutil.copytree(exported, tmp_path / "page"))
    page = open_page(serve(directory).url)
    for name, old, new in [("files.js", '"version": "', '"version": "new'), ("index.html", "<h2>Say", "<h2>Now say")]:
        text = (directory / name).read_text(encoding="utf-8")
        (directory / name).write_text(text.replace(old, new), encoding="utf-8")
    assert page.locator("#empty h2").text_content() == "Say something"
    page.evaluate("navigator.serviceWorker.getRegistration().then((registration) => registration.update())")
    page.evaluate(UNTIL_NEW)
    page.reload()
    page.wait_for_selector("#model:enabled")
    assert page.locator("#empty h2").text_content() == "Now say something"


def test_no_request_goes_to_another_host(exported, serve, open_page, tmp_path):
    """What goes to any other host than the page's, from the service worker too, comes to a proxy."""
    asked: list[str] = []

    class Recorder(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.path.removeprefix("http://").split("/")[0].split(":")[0]
            if not host.endswith(OF_THE_BROWSER):
                asked.append(host)
            self.send_error(404)

        do_CONNECT = do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    recorder = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    thread = threading.Thread(target=recorder.serve_forever, daemon=True)
    thread.start()
    proxy = {"server": f"http://127.0.0.1:{recorder.server_address[1]}", "bypass": "127.0.0.1"}
    page = greedy(open_page(serve(exported).url, proxy=proxy))
    say(page, QUESTIONS[0])
    save(page, tmp_path / "saved")
    page.reload()
    page.wait_for_selector("#model:enabled")
    assert asked == []
    page.context.new_page().goto("http://another-host.test/")
    assert "another-host.test" in asked
    recorder.shutdown()
    recorder.server_close()
    thread.join()


def test_the_policy_lets_nothing_else_in(page, open_page, exported):
    policy = page.evaluate("fetch('index.html').then((response) => response.headers.get('content-security-policy'))")
    (in_page,) = re.findall(
        r'http-equiv="Content-Security-Policy" content="([^"]*)"', (exported / "index.html").read_text()
    )
    assert policy == f"{in_page}; frame-ancestors 'none'"
    rules = dict(rule.strip().split(" ", 1) for rule in in_page.split(";"))
    assert rules.pop("script-src") == "'self' 'wasm-unsafe-eval'"
    assert rules["default-src"] == "'none'"
    assert set(rules.values()) == {"'none'", "'self'"}
    refusal = "fetch('http://127.0.0.1:9/').then(() => 'fetched', () => 'refused')"
    with page.expect_event("console", lambda message: "Content Security Policy" in message.text):
        assert page.evaluate(refusal) == "refused"
    assert any("Content Security Policy" in fault for fault in open_page.faults)
    open_page.faults.clear()


def test_every_module_of_the_page_is_named_in_its_head(exported):
    head = (exported / "index.html").read_text(encoding="utf-8").split("</head>")[0]
    named = set(re.findall(r'(?:href|src)="([^"]+)"', head))
    imported = {"app.js"}
    for _ in range(4):
        for name in list(imported):
            imported |= set(re.findall(r'from "\./([^"]+)"', (exported / name).read_text(encoding="utf-8")))
    assert {name for name in named if name.endswith(".js")} == imported


def test_every_file_is_kept_for_offline_use(exported):
    (table,) = re.findall(r"self\.EXPORTED = (.*);\n", (exported / "files.js").read_text(), re.DOTALL)
    files = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    kept = json.loads(table)["files"]
    assert set(kept) == files - {"service_worker.js", "files.js"}
    assert all((exported / name).stat().st_size == entry["bytes"] for name, entry in kept.items())


LOAD = """async (numThreads) => {
  const [{ Model }, runtime] = await Promise.all([import("./model.js"), import("./runtime/ort.wasm.min.mjs")]);
  const description = await (await fetch("model/model.json")).json();
  runtime.env.wasm.wasmPaths = new URL("runtime/", location.href).href;
  runtime.env.wasm.numThreads = numThreads;
  const place = (name) => new URL(`model/${name}`, location.href).href;
  const externalData = [{ path: description.weights, data: place(description.weights) }];
  const session = await runtime.InferenceSession.create(place(description.graph), { externalData });
  self.model = new Model(description, runtime, session);
  self.state = self.model.newState();
  await self.model.read(self.state, [2, 4, 100]);
}"""
STEP = """async (numSteps) => {
  const start = performance.now();
  for (let step = 0; step < numSteps; step += 1) await self.model.read(self.state, [100]);
  return (performance.now() - start) / 1000;
}"""


def test_one_thread_is_at_least_a_third_as_fast_as_the_native_engines(page, model):
    """Both take the same steps in turns, and the best of each is compared: the machine may be busy."""
    executor = model.engine.executor(1)
    executor.prefill([0], np.array([[2, 4, 100]]), None, "none")
    page.evaluate(LOAD, 1)
    native, in_page = [], []
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(STEPS):
            executor.step([0], [100])
        native.append(time.perf_counter() - start)
        in_page.append(page.evaluate(STEP, STEPS))
    print(f"native {STEPS / min(native):.0f} tokens/s, page {STEPS / min(in_page):.0f} tokens/s")
    assert min(native) / min(in_page) >= 1 / 3


def test_a_servers_conversation_and_the_pages_pass_to_and_fro_by_their_messages(page, url, open_page, tmp_path):
    answer = say(page, QUESTIONS[0])
    other = open_page(url)
    other.set_input_files("#file", save(page, tmp_path / "page"))
    playwright.expect(other.locator(".answer .said")).to_have_text(answer)
    greedy(other, 8)
    second = say(other, QUESTIONS[1])
    # The browser notes by itself that the server did not know the place.
    assert ["404" in fault for fault in open_page.faults] == [True]
    open_page.faults.clear()
    page.set_input_files("#file", save(other, tmp_path / "server"))
    playwright.expect(page.locator(".answer .said")).to_have_text([answer, second])
    assert say(page, QUESTIONS[2])
