"""griffin exits: probes and thresholds of a recursive model from a text, in its directory."""

import dataclasses
import json
import random

import pytest

pytest.importorskip("transformers", reason="needs the extra train")
import torch

import griffinlm
from griffinlm.checkpoint import initial_tensors, open_checkpoint, write_checkpoint
from griffinlm.checkpoint.exits import EXITS_FILE, read_exits
from griffinlm.config import RecursionConfig
from griffinlm.train.exit_probe import _recorded


@pytest.fixture
def looped(tmp_path, tiny_model_directory):
    """A Griffin of three loops, with a tokenizer."""
    config = open_checkpoint(tiny_model_directory).config
    config = dataclasses.replace(config, num_layers=9, recursion=RecursionConfig(3, rank=2))
    write_checkpoint(config, initial_tensors(config, 0), tmp_path / "looped", "griffinlm", None, tiny_model_directory)
    return tmp_path / "looped"


@pytest.fixture
def text(tmp_path):
    draw, path = random.Random(0), tmp_path / "text.jsonl"
    words = ["the", "hawk", "and", "griffin", "hunt", "over", "hills"]
    rows = [json.dumps({"text": " ".join(draw.choices(words, k=25))}) for _ in range(20)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_what_is_told_is_what_is_written_and_the_heads_find_what_they_are_asked_for(griffin, looped, text):
    run = griffin("exits", looped, "--text", text, "--quality", "0.8", "--json")
    assert (run.status, run.err) == (0, "")
    exits = read_exits(looped, open_checkpoint(looped).config)
    assert exits is not None
    assert run.json["path"] == str(looped / EXITS_FILE)
    assert [loop["share"] for loop in run.json["loops"]] == list(exits.shares)
    assert run.json["tokens"] == exits.num_tokens
    model = griffinlm.load(looped, engine="torch")
    documents = [json.loads(line)["text"] for line in text.read_text().splitlines()]
    ids = [[model.tokenizer.bos_id, *model.tokenizer.encode(document)] for document in documents]
    learned, kept = _recorded(model.engine.model, ids, 40_000)
    assert len(learned) + len(kept) == len(documents)
    confidence = exits.confidence(torch.cat([normed for normed, _ in kept]).numpy())
    is_right = torch.cat([right for _, right in kept]).numpy()
    for loop, threshold in enumerate(exits.thresholds):
        may_leave = confidence[:, loop] >= threshold
        assert may_leave.mean() == pytest.approx(exits.shares[loop])
        assert is_right[may_leave, loop].mean() >= 0.8


def test_equal_texts_give_equal_bits(griffin, looped, text):
    files = []
    for _ in range(2):
        griffin("exits", looped, "--text", text)
        files.append((looped / EXITS_FILE).read_bytes())
    assert files[0] == files[1]


def test_a_converted_and_a_quantized_model_keep_their_exits(griffin, looped, text, tmp_path):
    griffin("exits", looped, "--text", text)
    for name, command in (("half", ("convert", "--to", "griffinlm", "--dtype", "float16")), ("int8", ("quantize",))):
        run = griffin(command[0], looped, tmp_path / name, *command[1:])
        assert (run.status, run.err) == (0, "")
        assert (tmp_path / name / EXITS_FILE).read_bytes() == (looped / EXITS_FILE).read_bytes()


def test_the_table_has_a_line_for_every_loop_but_the_last(griffin, looped, text):
    run = griffin("exits", looped, "--text", text)
    lines = run.out.splitlines()
    assert lines[0].split() == ["behind", "loop", "confidence", "of", "tokens"]
    assert [line.split()[0] for line in lines[1:3]] == ["1", "2"]
    assert lines[-1].startswith(f"{looped / EXITS_FILE}: ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--quality", "1.5"), "quality is 1.5; it must be in 0..1"),
        (("--max-tokens", "100"), "exits need 1,000 in two documents or more"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(griffin, looped, text, options, words):
    run = griffin("exits", looped, "--text", text, *options)
    assert run.status == 2
    assert words in run.err
    assert not (looped / EXITS_FILE).exists()


def test_a_model_without_loops_is_refused(griffin, tiny_model_directory, text):
    run = griffin("exits", tiny_model_directory, "--text", text)
    assert run.status == 2
    assert "the model has no loops" in run.err
