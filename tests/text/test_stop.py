"""Stop strings over every cut of a text = the same stop strings over the whole."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from griffinlm.text import StopStringError, StopStrings

few_letters = st.text(alphabet="ab", max_size=12)
stop_strings = st.text(alphabet="ab", min_size=1, max_size=4)


def run(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    """All that passes, and whether it was stopped; checks what is held back on the way."""
    watch, passed, stopped = StopStrings(stops), "", False
    longest = max(map(len, stops), default=1)
    for num_pieces, piece in enumerate(pieces, start=1):
        text, now_stopped = watch.push(piece)
        assert not (stopped and text)
        passed, stopped = passed + text, now_stopped
        if not stopped:
            assert len("".join(pieces[:num_pieces])) - len(passed) < longest
    return passed + watch.finish(), stopped


def cut(text: str, positions: list[int]) -> list[str]:
    inside = sorted(position % (len(text) + 1) for position in positions)
    return [text[start:end] for start, end in zip([0, *inside], [*inside, len(text)], strict=True)]


def over_the_whole(text: str, stops: list[str]) -> tuple[str, bool]:
    """The stop string that ends first, the longest of those; by str.find alone."""
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return (text[: min(found)[1]], True) if found else (text, False)


@given(few_letters, stop_strings, st.lists(st.integers(0, 50), max_size=5))
def test_one_stop_string_over_any_cut_is_find_on_the_whole(text, stop, positions):
    at = text.find(stop)
    assert run([stop], cut(text, positions)) == ((text[:at], True) if at >= 0 else (text, False))


def test_every_short_stop_string_in_every_short_text_is_find_on_the_whole():
    texts = ["".join(letters) for length in range(8) for letters in product("ab", repeat=length)]
    for stop in texts[1:31]:
        for text in texts:
            assert run([stop], list(text)) == over_the_whole(text, [stop])


@given(few_letters, st.lists(stop_strings, max_size=3), st.lists(st.integers(0, 50), max_size=5))
def test_several_stop_strings_over_any_cut_are_the_first_to_end_on_the_whole(text, stops, positions):
    assert run(stops, cut(text, positions)) == over_the_whole(text, stops)


def test_every_cut_of_one_text_in_two_gives_the_same():
    text = "one END two"
    for at in range(len(text) + 1):
        assert run(["END", "ND t"], [text[:at], text[at:]]) == ("one ", True)


def test_nothing_passes_after_a_stop():
    watch = StopStrings(["."])
    assert watch.push("a.b") == ("a", True)
    assert watch.push("c") == ("", True)
    assert watch.finish() == ""


def test_text_that_only_begins_a_stop_string_comes_out_at_the_end():
    watch = StopStrings(["</answer>"])
    assert watch.push("x </ans") == ("x ", False)
    assert watch.finish() == "</ans"


def test_one_string_is_one_stop_string():
    assert StopStrings("ab").push("ba") == ("b", False)
    assert StopStrings("ab").push("bab") == ("b", True)


def test_no_stop_strings_hold_nothing_back():
    assert StopStrings([]).push("text") == ("text", False)


@pytest.mark.parametrize("stops", ["", [""], ["a", ""], [5], [None]])
def test_a_stop_string_that_is_empty_or_no_text_is_refused(stops):
    with pytest.raises(StopStringError, match="at least one character"):
        StopStrings(stops)
