"""Packing: the tokens of the tokenizer, the split by hash, bad rows, whole or not at all."""

import json
import lzma

import numpy as np
import pytest

from griffinlm import GriffinError
from griffinlm.text import Tokenizer
from griffinlm.train.data.pack import PackOptions, is_held_out, pack
from griffinlm.train.data.token_file import open_packed
from griffinlm.train.errors import TrainError

TEXTS = [f"the hawk {number} hunts <eos> over <bos> the hill" for number in range(50)]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in TEXTS))
    return path


def test_documents_are_their_tokens_between_bos_and_eos(tmp_path, file, tiny_tokenizer_directory):
    tokenizer = Tokenizer.from_directory(tiny_tokenizer_directory)
    packed = pack([file], tiny_tokenizer_directory, tmp_path / "out", PackOptions(held_out_share=0.2))
    for split, wanted in ((packed.train, False), (packed.held_out, True)):
        texts = [text for text in TEXTS if is_held_out(text, 0.2) == wanted]
        expected = [t for text in texts for t in (tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id)]
        assert split.tokens.dtype == np.uint16
        assert split.tokens.tolist() == expected
        assert split.text_bytes.tolist() == [len(text) for text in texts]
        assert 0 < len(texts) < len(TEXTS)


def test_several_processes_pack_what_one_packs(tmp_path, file, tiny_tokenizer_directory):
    one = pack([file], tiny_tokenizer_directory, tmp_path / "one", PackOptions())
    two = pack([file], tiny_tokenizer_directory, tmp_path / "two", PackOptions(), processes=2)
    assert one.record == two.record
    assert np.array_equal(one.train.tokens, two.train.tokens)


def test_the_split_depends_on_the_text_alone_and_keeps_its_share():
    texts = [f"document {number}" for number in range(4000)]
    held_out = [text for text in texts if is_held_out(text, 0.05)]
    assert 140 <= len(held_out) <= 260
    assert not any(is_held_out(text, 0.0) for text in texts)
    assert {text for text in texts if is_held_out(text, 0.01)} < set(held_out)


BAD = b'{"text": "good"}\n\n{"text": "' + b"x" * 200 + b'"}\n{"text": "\xff"}\n{"body": "b"}\n{"text": "good too"}\n'


def test_bad_rows_are_skipped_and_told_with_file_and_line(tmp_path, tiny_tokenizer_directory):
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(lzma.compress(BAD))
    told: list[GriffinError] = []
    options = PackOptions(held_out_share=0.0, bad_rows="skip", largest_row_bytes=100)
    packed = pack([path], tiny_tokenizer_directory, tmp_path / "out", options, report=told.append)
    assert packed.train.num_documents == 2
    assert [str(error).split(":")[0] for error in told] == [f"{path}, line {line}" for line in (2, 3, 4, 5)]
    assert packed.record["num_bad_rows"] == 4
    assert packed.record["bad_rows_told"] == [str(error) for error in told]


def test_a_bad_row_is_refused_and_nothing_is_left(tmp_path, tiny_tokenizer_directory):
    path = tmp_path / "a.jsonl"
    path.write_bytes(BAD)
    with pytest.raises(GriffinError, match="line 2: the row is empty"):
        pack([path], tiny_tokenizer_directory, tmp_path / "out", PackOptions())
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_record_says_what_the_tokens_were_made_of(tmp_path, file, tiny_tokenizer_directory):
    first = pack([file], tiny_tokenizer_directory, tmp_path / "one", PackOptions()).record
    file.write_text(file.read_text().replace("hill", "lake"))
    second = pack([file], tiny_tokenizer_directory, tmp_path / "two", PackOptions()).record
    assert first["files"] != second["files"]
    assert first["tokenizer"] == second["tokenizer"]
    assert open_packed(tmp_path / "one").record == first


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda record: None, "holds no packed source"),
        (lambda record: "{", "is no JSON"),
        (lambda record: "[]", "has format_version None"),
        (lambda record: json.dumps({**record, "format_version": 2}), "has format_version 2"),
        (lambda record: json.dumps({**record, "train": 5}), "is damaged"),
        (lambda record: json.dumps({**record, "dtype": "goose"}), "is damaged"),
        (lambda record: json.dumps({**record, "dtype": "uint32"}), "bytes; pack.json says"),
    ],
)
def test_a_damaged_packed_source_is_refused(tmp_path, file, tiny_tokenizer_directory, damage, told):
    path = pack([file], tiny_tokenizer_directory, tmp_path / "out", PackOptions()).directory / "pack.json"
    text = damage(json.loads(path.read_text()))
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(TrainError) as caught:
        open_packed(tmp_path / "out")
    assert told in str(caught.value)


def test_a_source_that_is_held_out_as_a_whole_is_refused(tmp_path, file, tiny_tokenizer_directory):
    with pytest.raises(TrainError, match="all 50 documents of out are held out"):
        pack([file], tiny_tokenizer_directory, tmp_path / "out", PackOptions(held_out_share=1.0))
