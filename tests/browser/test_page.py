"""The chat page in a real browser, against a real server."""

import json
import re
import urllib.request
from pathlib import Path

import pytest

import griffinlm

playwright = pytest.importorskip("playwright.sync_api")

PAGE = Path(griffinlm.__file__).parent / "serve" / "page"
HOSTILE = (
    "<img src=x onerror=\"document.title='hit'\">",
    "</li><script>document.title='hit'</script>",
    "<b>bold</b> &amp; \"quotes\" 'and' `ticks` ${document.title='hit'}",
    "javascript:document.title='hit'",
)


def write(page, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")


def say(page, text: str) -> str:
    """Takes a turn and waits for its end; gives the answer."""
    write(page, text)
    page.wait_for_selector("#send:visible")
    return page.locator(".answer .said").last.text_content()


def greedy(page, max_tokens: int = 12) -> None:
    page.click("summary")
    page.fill("#temperature", "0")
    page.fill("#max-tokens", str(max_tokens))


def slow_network(page, bytes_per_second: int) -> None:
    """So that there is time to press a key while an answer comes."""
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    limits = {"offline": False, "latency": 0, "downloadThroughput": bytes_per_second, "uploadThroughput": -1}
    session.send("Network.emulateNetworkConditions", limits)


def tree_of(page) -> list[str]:
    return page.locator("#tree [role=treeitem]").all_text_contents()


def current(page) -> str:
    return page.locator("#tree [aria-selected=true]").text_content()


def numbers(locator) -> list[int]:
    return [int(found) for found in re.findall(r"\d+", locator.text_content())]


def post(url: str, path: str, body: dict) -> dict:
    data = json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def test_the_page_is_its_own_files_under_a_strict_policy(url, open_page):
    page = open_page(url)
    with urllib.request.urlopen(url) as response:
        policy = response.headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";") if rule.strip())
    assert rules["default-src"] in ("'none'", "'self'")
    assert "unsafe" not in policy
    assert "http" not in policy
    names = page.evaluate("performance.getEntriesByType('resource').map((entry) => new URL(entry.name).pathname)")
    assert {name.strip("/") for name in names} <= {file.name for file in PAGE.iterdir()} | {"v1/models"}


def test_every_file_of_the_page_is_named_in_its_head():
    """So that all of them come in one round of requests."""
    head = (PAGE / "index.html").read_text(encoding="utf-8").split("</head>")[0]
    names = set(re.findall(r'(?:href|src)="([^"]+)"', head))
    assert names == {file.name for file in PAGE.iterdir()} - {"index.html"}


def test_nothing_in_the_page_is_run_or_styled_inline():
    text = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?! [^>]*src=)|<style|\sstyle=|\son\w+=|javascript:", text)
    scripts = "".join(file.read_text(encoding="utf-8") for file in PAGE.glob("*.js"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", scripts)
    for file in PAGE.iterdir():
        outside = re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", file.read_text(encoding="utf-8"))
        assert [found for found in outside if "www.w3.org/2000/svg" not in found] == []


def test_an_answer_is_that_of_the_server(url, open_page):
    page = open_page(url)
    greedy(page)
    answer = say(page, "The hawk flies.")
    body = {"model": page.input_value("#model"), "input": "The hawk flies.", "temperature": 0, "max_output_tokens": 12}
    response = post(url, "v1/responses", body)
    assert answer == response["output"][0]["content"][0]["text"]
    assert page.locator("#length").text_content() == f"{response['usage']['total_tokens']} tokens"
    assert page.locator("#state-size").text_content().endswith("kB")


def test_a_stopped_answer_is_kept_and_the_conversation_goes_on(url, open_page):
    page = open_page(url)
    page.click("summary")
    page.fill("#temperature", "2")  # among all that may be said then the end seldom comes
    page.fill("#max-tokens", "600")
    slow_network(page, bytes_per_second=3000)
    write(page, "Once upon a time")
    playwright.expect(page.locator(".answer .said")).to_have_text(re.compile(".{20}", re.DOTALL), timeout=30_000)
    page.press("#text", "Escape")
    page.wait_for_selector("#send:visible")
    kept = page.locator(".answer .said").text_content()
    assert len(kept) >= 20
    assert page.locator(".note").text_content() == "cut short"
    page.fill("#max-tokens", "8")
    say(page, "And then?")
    assert page.locator(".answer .said").first.text_content() == kept
    assert tree_of(page) == ["0beginning", "1Once upon a time", "2And then?"]


def test_an_answer_cut_at_its_length_says_so_and_goes_on(url, open_page):
    page = open_page(url)
    note = page.locator(".answer .note")
    greedy(page, 60)
    say(page, "Where is the cat?")  # the answer has an end of its own
    assert note.count() == page.get_by_text("Go on", exact=True).count() == 0
    page.fill("#max-tokens", "3")
    say(page, "Once upon a time")
    assert note.all_text_contents() == ["cut at its length limit"]
    assert page.locator("#status").text_content().endswith("(cut at its length limit)")
    page.click("text=Go on")
    page.wait_for_selector("#send:visible")
    assert tree_of(page) == ["0beginning", "1Where is the cat?", "2Once upon a time", "3Go on."]
    told = note.all_text_contents()
    page.reload()
    page.wait_for_selector("#model:enabled")
    assert note.all_text_contents() == told != []


def test_an_answer_cut_at_its_deadline_says_so(start_server, open_page):
    page = open_page(start_server("--request-timeout", 0.5))
    greedy(page, 100_000)
    page.fill("#temperature", "2")
    for _ in range(20):  # an answer may end before
        say(page, "Once upon a time")
        if page.locator(".answer .note").count():
            break
    assert page.locator(".answer .note").text_content() == "cut at its time limit"


def test_nothing_is_asked_again_with_numbers_out_of_range(url, open_page):
    page = open_page(url)
    greedy(page, 6)
    say(page, "Once upon a time")
    page.fill("#temperature", "7")
    for name in ("Again", "Go on"):
        page.click(f"text={name}")
        assert tree_of(page) == ["0beginning", "1Once upon a time"]


def test_an_edited_message_grows_a_branch_and_the_old_one_stays(url, open_page):
    page = open_page(url)
    greedy(page)
    say(page, "The hawk flies.")
    first = say(page, "What does it see?")
    page.click("[aria-label='Edit turn 2']")
    assert page.input_value("#text") == "What does it see?"
    assert page.locator(".question").count() == 1
    say(page, "Where does it fly?")
    assert tree_of(page) == ["0beginning", "1The hawk flies.", "2What does it see?", "3Where does it fly?"]
    assert page.locator(".branches > span").text_content() == "2/2"
    page.click("[aria-label='Branch before']")
    assert page.locator(".answer .said").last.text_content() == first
    assert current(page) == "2What does it see?"


def test_an_edit_that_is_cancelled_changes_nothing(url, open_page):
    page = open_page(url)
    greedy(page)
    say(page, "The hawk flies.")
    page.click("[aria-label='Edit turn 1']")
    page.press("#text", "Escape")
    assert page.input_value("#text") == ""
    assert current(page) == "1The hawk flies."


def test_going_back_reads_only_what_is_said_next(url, open_page):
    page = open_page(url)
    greedy(page)
    for text in ("The hawk flies over the hill and the river. " * 8, "What does it see?", "And then?"):
        say(page, text)
    page.click("#tree [role=treeitem]:nth-child(2)")
    assert page.locator(".question").count() == 1
    say(page, "Where to?")
    anew, whole = numbers(page.locator("#read"))
    assert anew < 40 < whole
    assert [line[0] for line in tree_of(page)] == ["0", "1", "2", "3", "4"]


def test_the_tree_is_walked_with_arrows_and_enter(url, open_page):
    page = open_page(url)
    greedy(page, 4)
    for text in ("one", "two"):
        say(page, text)
    page.click("[aria-label='Go on behind turn 1']")
    say(page, "three")
    page.focus("#tree [aria-selected=true]")
    focused = "document.activeElement.textContent"
    for key, expected in [
        ("ArrowUp", "2two"),
        ("ArrowLeft", "1one"),
        ("ArrowRight", "2two"),
        ("ArrowDown", "3three"),
        ("Home", "0beginning"),
        ("End", "3three"),
        ("ArrowLeft", "1one"),
    ]:
        page.keyboard.press(key)
        assert page.evaluate(focused) == expected
    page.keyboard.press("Enter")
    assert current(page) == "1one"
    assert page.evaluate(focused) == "1one"


@pytest.fixture
def saved(url, open_page, tmp_path):
    """A page at its first of two turns, and the file of its conversation."""
    page = open_page(url)
    greedy(page)
    say(page, "The hawk flies over the hill and the river. " * 8)
    say(page, "What does it see?")
    page.click("[aria-label='Go on behind turn 1']")
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "conversation.griffin")
    return page, tmp_path / "conversation.griffin"


@pytest.mark.parametrize("is_same_server", [True, False])
def test_a_saved_conversation_goes_on_elsewhere(url, start_server, open_page, saved, is_same_server):
    page, path = saved
    other = open_page(url if is_same_server else start_server())
    greedy(other)
    other.set_input_files("#file", path)
    playwright.expect(other.locator("#tree li")).to_have_count(3)
    assert current(other) == current(page)
    assert say(other, "Where to?") == say(page, "Where to?")
    anew, whole = numbers(other.locator("#read"))
    assert anew < 40 < whole


def test_a_conversation_is_saved_where_the_server_has_lost_its_state(url, open_page, tmp_path):
    page = open_page(url)
    greedy(page)
    first = say(page, "The hawk flies.")
    id_of = "JSON.parse(sessionStorage.getItem('griffin.tree')).turns[0].responseId"
    request = urllib.request.Request(f"{url}v1/responses/{page.evaluate(id_of)}", method="DELETE")
    urllib.request.urlopen(request).close()
    with page.expect_download() as download:
        page.click("#save")
    # The browser notes the refusal by itself.
    assert ["404" in fault for fault in open_page.faults] == [True]
    open_page.faults.clear()
    download.value.save_as(tmp_path / "conversation.griffin")
    other = open_page(url)
    other.set_input_files("#file", tmp_path / "conversation.griffin")
    playwright.expect(other.locator(".answer .said")).to_have_text(first)


def test_a_file_with_another_state_is_refused(url, open_page, saved):
    _, path = saved
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    other = open_page(url)
    other.set_input_files("#file", path)
    other.wait_for_selector("#notice:visible")
    assert "signature" in other.locator("#notice").text_content()
    assert tree_of(other) == ["0beginning"]
    (fault,) = open_page.faults
    assert "400" in fault
    open_page.faults.clear()


@pytest.mark.parametrize("content", [b"", b"no JSON\n", b'{"format": "other"}\n', b"\xff\xfe"])
def test_other_files_are_refused(url, open_page, content):
    page = open_page(url)
    page.set_input_files("#file", {"name": "x.griffin", "mimeType": "application/octet-stream", "buffer": content})
    page.wait_for_selector("#notice:visible")
    assert "no conversation of this page" in page.locator("#notice").text_content()


def conversation_file(turns: list, current: object = 0) -> dict:
    content = json.dumps({"format": "griffinlm conversation 1", "turns": turns, "current": current}).encode() + b"\n"
    return {"name": "x.griffin", "mimeType": "application/octet-stream", "buffer": content}


def stored_turn(question: str, answer: str, parent: object = 0) -> dict:
    ids = {"model": None, "responseId": None, "numTokens": None}
    return {"parent": parent, "question": question, "answer": answer, **ids}


@pytest.mark.parametrize("turn", [stored_turn("a", "b", 1), stored_turn("a", "b", -1), {"parent": 0}, None, 5])
def test_files_of_our_form_that_hold_no_tree_are_refused(url, open_page, turn):
    page = open_page(url)
    page.set_input_files("#file", conversation_file([turn]))
    page.wait_for_selector("#notice:visible")
    assert "turn 1 is damaged" in page.locator("#notice").text_content()


def test_what_people_and_models_write_stays_text(url, open_page):
    page = open_page(url)
    greedy(page, 4)
    turns = [stored_turn(text, text, number) for number, text in enumerate(HOSTILE)]
    page.set_input_files("#file", conversation_file(turns, len(turns)))
    page.wait_for_selector(".answer")
    assert page.locator(".question .said").all_text_contents() == list(HOSTILE)
    assert page.locator(".answer .said").all_text_contents() == list(HOSTILE)
    for text in HOSTILE:
        say(page, text)
    assert page.locator(".question .said").all_text_contents() == [*HOSTILE, *HOSTILE]
    assert page.title() == "griffin"
    assert page.locator(".said :is(img, script, b)").count() == 0


def test_a_conversation_outlives_a_reload(url, open_page):
    page = open_page(url)
    greedy(page)
    answer = say(page, "The hawk flies.")
    page.reload()
    page.wait_for_selector("#model:enabled")
    assert page.locator(".answer .said").text_content() == answer


def test_a_server_with_keys_is_asked_with_one(start_server, open_page, browser, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("correct-horse-battery-staple\n")
    url = start_server("--api-key-file", keys)
    page = browser.new_context().new_page()
    page.goto(url)
    page.wait_for_selector("#key-dialog[open]")
    page.fill("#key", "wrong")
    page.press("#key", "Enter")
    page.wait_for_selector("#key-dialog[open]")
    page.fill("#key", "ключ-of-other-letters")
    page.press("#key", "Enter")
    assert page.locator("#key-dialog[open]").count(), "a header cannot hold it"
    page.fill("#key", "correct-horse-battery-staple")
    page.press("#key", "Enter")
    page.wait_for_selector("#model:enabled")
    greedy(page)
    assert say(page, "The hawk flies.")
    page.context.close()


@pytest.mark.parametrize(("scheme", "other"), [("light", "dark"), ("dark", "light")])
def test_the_theme_is_the_systems_until_the_button_is_pressed(url, open_page, scheme, other):
    page = open_page(url, color_scheme=scheme)
    theme = "getComputedStyle(document.documentElement).colorScheme"
    assert page.evaluate(theme) == scheme
    page.click("#theme")
    assert page.evaluate(theme) == other
    page.reload()
    assert page.evaluate(theme) == other


def test_a_phone_shows_all_without_scrolling_sideways(url, open_page):
    page = open_page(url)
    page.set_viewport_size({"width": 360, "height": 640})
    say(page, "x" * 300)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.click("#show-side")
    assert page.locator("#tree").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.click("#tree [role=treeitem]:nth-child(1)")
    assert page.locator("#text").is_visible()


def test_every_control_has_a_name_and_the_focus_is_seen(url, open_page):
    page = open_page(url)
    greedy(page)
    say(page, "The hawk flies.")
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, input:not([hidden]), select, textarea")].filter((control) =>
            !control.labels?.length && !control.ariaLabel && !control.textContent.trim()).length"""
    )
    assert nameless == 0
    page.focus("#text")
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert page.locator("#status").text_content().startswith("Answer: ")


def test_numbers_out_of_range_are_not_sent(url, open_page):
    page = open_page(url)
    greedy(page)
    page.fill("#temperature", "7")
    write(page, "The hawk flies.")
    assert page.input_value("#text") == "The hawk flies."
    assert tree_of(page) == ["0beginning"]


def test_escape_keeps_what_is_being_typed(url, open_page):
    page = open_page(url)
    page.fill("#text", "half a sen")
    page.press("#text", "Escape")
    assert page.input_value("#text") == "half a sen"


def test_a_new_conversation_begins_only_when_that_is_meant(url, open_page):
    page = open_page(url)
    greedy(page, 4)
    say(page, "one")
    for answer, num_turns in (("dismiss", 1), ("accept", 0)):
        page.once("dialog", lambda dialog, answer=answer: getattr(dialog, answer)())
        page.click("#new")
        assert len(tree_of(page)) == 1 + num_turns
