"""A text that need not end: the tokens of the whole, an answer behind every line that matches, constant memory."""

import io
import itertools
import json
import re
import subprocess
import sys
import textwrap
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

import griffinlm
from griffinlm.cli import pipe, text_input
from griffinlm.cli.pipe import LONGEST_LINE, Reading, pieces_by_line, pieces_by_size
from griffinlm.cli.text_input import PIECE_BYTES, InputError, read_texts

OPTIONS = ("--max-tokens", "6", "--temperature", "0")
lines = st.lists(st.sampled_from(["the hawk", "ERROR grün", "", "  hill", "\thill", "x" * 40, "older"]), max_size=12)
texts = st.builds(lambda found, end: "\n".join(found) + end, lines, st.sampled_from(["", "\n", "\n\n"]))
cuts = st.lists(st.integers(1, 9), min_size=1, max_size=30)


def in_parts(text: str, sizes: list[int]) -> list[str]:
    """The text in parts of these sizes, over and over."""
    parts, start, index = [], 0, 0
    while start < len(text):
        size = sizes[index % len(sizes)]
        parts.append(text[start : start + size])
        start, index = start + size, index + 1
    return parts


class Drip(io.RawIOBase):
    """Bytes that come a few at a time, as from a pipe."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self._parts = iter([data[i : i + size] for i, size in zip(*self._places(data, sizes), strict=True)])

    @staticmethod
    def _places(data: bytes, sizes: list[int]) -> tuple[list[int], list[int]]:
        starts, taken = [], []
        while sum(taken) < len(data):
            starts.append(sum(taken))
            taken.append(sizes[len(taken) % len(sizes)])
        return starts, taken

    def __call__(self, num_bytes: int) -> bytes:
        return next(self._parts, b"")


@pytest.fixture(scope="module")
def model(tiny_model_directory):
    return griffinlm.load(tiny_model_directory)


@given(texts, cuts)
def test_pieces_by_line_joined_are_the_text_and_end_with_the_lines_that_match(text, sizes):
    pieces = list(pieces_by_line(in_parts(text, sizes), re.compile("ERROR")))
    assert "".join(piece.text for piece in pieces) == text
    matching = [number for number, line in enumerate(text.split("\n"), 1) if "ERROR" in line]
    assert [piece.num_lines for piece in pieces if piece.is_match] == matching
    assert all(re.search(r"ERROR.*\n?$", piece.text) for piece in pieces if piece.is_match)


@given(texts, cuts)
def test_tokens_of_the_pieces_are_those_of_the_whole_text(model, text, sizes):
    pieces = pieces_by_line(in_parts(text, sizes), re.compile("never"))
    ids = [token for piece in pieces for token in model.tokenizer.encode(piece.text)]
    assert ids == model.tokenizer.encode(text)


def test_tokens_of_the_bundled_model_too():
    tokenizer = griffinlm.load("eyas").tokenizer
    text = "Mon 12:01  kestrel: ok\n\n  at line 3\nMon 12:02 ERROR\n\ttrace\n...\n\n\nEnd of it.\n" * 3
    pieces = pieces_by_line(in_parts(text, [7, 3, 11]), re.compile("never"))
    assert [token for piece in pieces for token in tokenizer.encode(piece.text)] == tokenizer.encode(text)


@given(st.binary(max_size=60), cuts)
def test_text_of_bytes_that_drip_is_that_of_the_bytes_at_once(data, sizes):
    found = "".join(read_texts(Drip(data, sizes), "replace"))
    assert found == data.decode("utf-8", "replace")
    try:
        expected = data.decode("utf-8")
    except UnicodeDecodeError as error:
        with pytest.raises(InputError, match=f"byte 0x{data[error.start]:02x} at offset {error.start}$"):
            list(read_texts(Drip(data, sizes)))
    else:
        assert "".join(read_texts(Drip(data, sizes))) == expected


def test_a_short_text_is_one_piece_and_a_long_one_is_cut_at_its_lines():
    assert list(pieces_by_size(["one\ntwo\n"])) == ["one\ntwo\n"]
    text = "a line of text\n" * 20_000
    parts = in_parts(text, [PIECE_BYTES])
    pieces = list(pieces_by_size(parts))
    assert "".join(pieces) == text
    assert len(pieces) == len(parts)
    assert all(piece.endswith("\n") and len(piece) <= 2 * PIECE_BYTES for piece in pieces)


@pytest.mark.parametrize("unit", ["x", " ", "\n", "word ", "é"])
def test_pieces_stay_bounded_whatever_the_text(unit):
    parts = [unit * (PIECE_BYTES // len(unit))] * 6
    for pieces in (list(pieces_by_size(parts)), [p.text for p in pieces_by_line(parts, re.compile("never"))]):
        assert "".join(pieces) == "".join(parts)
        assert max(map(len, pieces)) <= 3 * PIECE_BYTES


def test_a_line_that_is_too_long_counts_as_several():
    text = "x" * (LONGEST_LINE + 5) + "ERROR\nend"
    pieces = list(pieces_by_line([text], re.compile("ERROR|end")))
    assert [(piece.num_lines, piece.is_match) for piece in pieces] == [(2, True), (3, True)]


def test_a_reading_is_the_state_of_the_text_with_its_last_token_pending(model):
    reading = Reading(model, None, None)
    for part in ("the hawk\n", "a", "", "nd the hill\n"):
        reading.read(part)
    ids = [2, *(token for part in ("the hawk\n", "a", "nd the hill\n") for token in model.tokenizer.encode(part))]
    assert reading.state.pending.tolist() == ids[-1:]
    assert reading.state.num_tokens.tolist() == [len(ids) - 1]
    expected = model.generate(ids, max_tokens=6, temperature=0)
    assert model.generate("", state=reading.state, max_tokens=6, temperature=0).token_ids == expected.token_ids


@pytest.fixture
def generate(griffin, tiny_model_directory):
    def run(*arguments: object, stdin: bytes = b""):
        return griffin("generate", *arguments, "--model", tiny_model_directory, *OPTIONS, stdin=stdin)

    return run


def test_every_match_is_answered_as_the_text_up_to_it(generate):
    log = b"the hawk\nERROR one\nthe hill\nERROR two\nthe end"
    answers = [generate("-", "--ask", "So", stdin=log[: log.index(end) + 4]).out for end in (b"one\n", b"two\n")]
    run = generate("-", "--every", "^ERROR", "--ask", "So", stdin=log)
    assert run == (0, "".join(f"{answer}\n---\n" for answer in answers), "")


def test_every_match_as_json_tells_line_and_tokens(generate, model):
    run = generate("-", "--every", "ERROR", "--json", "-n", "2", stdin=b"the hawk\nERROR\n\nERROR again")
    assert run.err == ""
    found = [json.loads(line) for line in run.out.splitlines()]
    assert [one["line"] for one in found] == [2, 4]
    assert [len(one["answers"]) for one in found] == [2, 2]
    assert found[0]["num_prompt_tokens"] == 1 + len(model.tokenizer.encode("the hawk\nERROR\n"))


def test_an_answer_on_the_way_leaves_the_reading_as_it_was(generate, tmp_path):
    log = b"the hawk\nERROR one\nthe hill\n"
    assert generate("-", "--every", "ERROR", "--state-out", tmp_path / "with", stdin=log).out
    assert generate("-", "--every", "never", "--state-out", tmp_path / "without", stdin=log) == (0, "", "")
    found = [generate("", "--json", "--state-in", tmp_path / name).json["token_ids"] for name in ("with", "without")]
    assert found[0] == found[1]


def test_an_interrupted_reading_is_saved_as_far_as_it_came(
    griffin, generate, monkeypatch, tiny_model_directory, tmp_path
):
    def read_texts(read, invalid):
        yield "the hawk\nERROR\n"
        raise KeyboardInterrupt

    monkeypatch.setattr("griffinlm.cli.generate.read_texts", read_texts)
    assert generate("-", "--every", "ERROR", "--state-out", tmp_path / "cut").status == 130
    monkeypatch.undo()
    model = griffinlm.load(tiny_model_directory)
    state = griffinlm.State.load(tmp_path / "cut", model)
    assert state.num_tokens[0] == len(model.tokenizer.encode("the hawk\nERROR\n"))


def test_a_text_interrupted_before_its_answer_is_saved_as_far_as_it_was_read(
    generate, monkeypatch, tiny_model_directory, tmp_path
):
    monkeypatch.setattr(pipe, "PIECE_BYTES", 64)
    line = "the hawk and the griffin are older than the hill\n"

    def read_texts(read, invalid):
        yield from [line] * 9
        raise KeyboardInterrupt

    monkeypatch.setattr("griffinlm.cli.generate.read_texts", read_texts)
    assert generate("-", "--state-out", tmp_path / "cut") == (130, "", "")
    model = griffinlm.load(tiny_model_directory)
    state = griffinlm.State.load(tmp_path / "cut", model)
    num_lines = int(state.num_tokens[0]) // len(model.tokenizer.encode(line))
    assert num_lines >= 1
    assert state.num_tokens[0] == len(model.tokenizer.encode(line * num_lines))


def test_a_reading_goes_on_from_a_state(generate, tmp_path):
    whole = generate("-", "--every", "ERROR", stdin=b"the hawk\nthe hill\nERROR\n")
    generate("-", "--every", "never", "--state-out", tmp_path / "state", stdin=b"the hawk\n")
    assert generate("-", "--every", "ERROR", "--state-in", tmp_path / "state", stdin=b"the hill\nERROR\n") == whole


def test_a_text_of_many_pieces_is_answered_as_the_whole(generate, model, monkeypatch):
    for module in (pipe, text_input):
        monkeypatch.setattr(module, "PIECE_BYTES", 256)
    text = "the hawk and the griffin are older than the hill\n" * 20
    ids = model.tokenizer.encode(text + "They")
    run = generate("-", "--ask", "They", "--json", stdin=text.encode()).json
    assert run["num_prompt_tokens"] == 1 + len(ids)
    expected = model.generate([2, *ids], max_tokens=6, temperature=0)
    assert run["token_ids"] == expected.token_ids


def test_global_attention_reads_on_only_with_room(griffin, tiny_gemma_directory):
    given = ("generate", "-", "--every", "ERROR", "--model", tiny_gemma_directory, *OPTIONS)
    assert "cannot read without end" in griffin.fails(*given, stdin=b"ERROR\n")
    assert griffin(*given, "--capacity", 40, stdin=b"ERROR\n").out.endswith("\n---\n")
    assert "capacity is 40" in griffin.fails(*given, "--capacity", 40, stdin=b"the hawk and the hill\n" * 20)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("text", "--every", "x"), "--every is given with a prompt"),
        (("text", "--ask", "x"), "--ask is given with a prompt"),
        (("text", "--invalid-utf8", "replace"), "--invalid-utf8 is given with a prompt"),
        (("-", "--every", "("), "--every '(' is no regular expression"),
        (("-", "--invalid-utf8", "guess"), "--invalid-utf8 is guess; allowed are refuse, replace"),
        (("-", "--every", "x", "--state-out", "no/where"), "no/where"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(griffin, tiny_model_directory, options, named):
    assert named in griffin.fails("generate", *options, "--model", tiny_model_directory, stdin=b"x\n")


def test_invalid_utf8_is_refused_with_its_place_or_replaced(generate):
    log = b"the hawk\n" * 2 + b"\xff\n"
    assert "byte 0xff at offset 18" in generate("-", "--every", "x", stdin=log).err
    replaced = generate("-", "--invalid-utf8", "replace", stdin=log)
    assert replaced == generate("-", stdin=log.replace(b"\xff", "\ufffd".encode()))


def test_ten_megabytes_are_cut_into_pieces_in_constant_memory():
    part = b"".join(b"%d the hawk and the griffin\n" % number for number in range(100_000, 102_000))
    reads = itertools.chain(itertools.repeat(part, 10_000_000 // len(part)), itertools.repeat(b""))
    tracemalloc.start()
    pieces = pieces_by_line(read_texts(lambda _: next(reads)), re.compile("^100000 "))
    num_answers = sum(piece.is_match for piece in pieces)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_answers == 10_000_000 // len(part)
    assert peak_bytes < 1_500_000


MEASURED = """
    import os, resource, sys, threading
    from griffinlm.cli.main import main

    read_end, write_end = os.pipe()

    def write():
        with os.fdopen(write_end, "wb") as pipe:
            for number in range(int(sys.argv[1])):
                pipe.write(b"%d the hawk and the griffin are older than the hill\\n" % number)

    sys.stdin = os.fdopen(read_end)
    threading.Thread(target=write).start()
    status = main(["generate", "-", "--every", "000 ", "--max-tokens", "4", "--threads", "1"])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
    sys.exit(status)
"""


def peak_kilobytes(num_lines: int) -> int:
    program = [sys.executable, "-c", textwrap.dedent(MEASURED), str(num_lines)]
    return int(subprocess.run(program, capture_output=True, text=True, check=True).stderr)


@pytest.mark.slow
def test_memory_of_the_bundled_model_does_not_grow_with_the_text():
    """The longer text has 3 MB, and 30 MB of tokens in a list, more than the shorter."""
    short, long = peak_kilobytes(4_000), peak_kilobytes(64_000)
    assert long - short < 3_000
