"""Rows of token files, against what a list of the documents says by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from griffinlm.train.data.token_file import IGNORED, TokenFile, TokenWriter, open_packed
from griffinlm.train.errors import TrainError

BOS, EOS = 1, 2
Documents = list[list[int]]

documents = st.lists(st.lists(st.integers(3, 60_000), max_size=12), min_size=1, max_size=8)


def token_file(directory: Path, texts: Documents) -> TokenFile:
    writer = TokenWriter(directory, np.dtype("<u2"), BOS, EOS)
    for ids in texts:
        writer.add(ids, 3 * len(ids) + 1)
    writer.close()
    counts = {"num_tokens": writer.num_tokens, "num_documents": writer.num_documents}
    return TokenFile(directory, "uint16", counts)


def stream(texts: Documents) -> tuple[list[int], list[int]]:
    """All tokens, and the place of each in its document."""
    whole = [[BOS, *ids, EOS] for ids in texts]
    return [t for ids in whole for t in ids], [p for ids in whole for p in range(len(ids))]


@given(texts=documents, row_tokens=st.integers(2, 9))
def test_rows_are_consecutive_tokens_with_positions_from_zero(tmp_path_factory, texts, row_tokens):
    file = token_file(tmp_path_factory.mktemp("tokens") / "train", texts)
    tokens, places = stream(texts)
    assert file.num_rows(row_tokens) == (len(tokens) - 1) // row_tokens
    for index in range(file.num_rows(row_tokens)):
        row = file.row(index, row_tokens)
        first = index * row_tokens
        assert row.tokens.tolist() == tokens[first : first + row_tokens]
        # The row's first document starts anew, whatever stood before the row.
        expected = [min(places[first + i], i) for i in range(row_tokens)]
        assert row.positions.tolist() == expected
        after = tokens[first + 1 : first + row_tokens + 1]
        assert row.labels.tolist() == [IGNORED if token == BOS else token for token in after]


@given(texts=documents, row_tokens=st.integers(2, 9), max_tokens=st.integers(1, 60))
def test_every_token_of_a_held_out_text_is_a_label_once(tmp_path_factory, texts, row_tokens, max_tokens):
    file = token_file(tmp_path_factory.mktemp("tokens") / "held_out", texts)
    rows, num_bytes = file.held_out_rows(row_tokens, max_tokens)
    ends = np.cumsum([len(ids) + 2 for ids in texts])
    taken = texts[: max(int((ends <= max_tokens).sum()), 1)]
    labels = [label for row in rows for label in row.labels.tolist() if label != IGNORED]
    assert labels == [token for ids in taken for token in ids]
    assert num_bytes == 3 * len(labels) + len(taken)
    assert all(len(row.tokens) == len(row.positions) == len(row.labels) == row_tokens for row in rows)
    padding = np.concatenate([row.positions for row in rows]) < 0
    assert (~padding).sum() == sum(len(ids) + 2 for ids in taken) - 1


def test_an_empty_split_has_no_rows(tmp_path):
    file = token_file(tmp_path / "held_out", [])
    assert file.num_rows(4) == 0
    assert file.held_out_rows(4, 100) == ([], 0)


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.int64", "bytes.int64"])
def test_a_cut_file_is_refused(tmp_path, name):
    token_file(tmp_path / "train", [[3, 4], [5]])
    path = tmp_path / "train" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TrainError, match=rf"{name} has .* bytes; pack\.json says"):
        TokenFile(tmp_path / "train", "uint16", {"num_tokens": 7, "num_documents": 2})


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("offsets.int64", 0, 1),
        ("offsets.int64", 1, -5),
        ("offsets.int64", 1, 10**12),
        ("offsets.int64", slice(None), 0),
        ("bytes.int64", 1, 0),
    ],
)
def test_documents_that_cannot_be_are_refused(tmp_path, name, place, value):
    token_file(tmp_path / "train", [[3, 4], [5]])
    numbers = np.fromfile(tmp_path / "train" / name, np.int64)
    numbers[place] = value
    numbers.tofile(tmp_path / "train" / name)
    with pytest.raises(TrainError, match=f"{name} is damaged"):
        TokenFile(tmp_path / "train", "uint16", {"num_tokens": 7, "num_documents": 2})


def test_a_token_outside_of_the_vocabulary_is_refused_with_its_place(tmp_path):
    token_file(tmp_path / "train", [[3, 4], [5, 300, 6]])
    file = TokenFile(tmp_path / "train", "uint16", {"num_tokens": 9, "num_documents": 2}, vocab_size=300)
    assert file.row(0, 4).tokens.tolist() == [BOS, 3, 4, EOS]
    for read in (lambda: file.row(1, 4), lambda: file.held_out_rows(4, 100)):
        with pytest.raises(TrainError, match="token 300 at place 6; the vocabulary has 300"):
            read()


@pytest.mark.parametrize(
    ("dtype", "counts"),
    [("int16", {"num_tokens": 7}), ("uint16", {"num_tokens": "7"}), ("uint16", {"num_tokens": 7.0})],
)
def test_an_edited_record_is_refused(tmp_path, dtype, counts):
    token_file(tmp_path / "train", [[3, 4], [5]])
    token_file(tmp_path / "held_out", [[3]])
    split = {"num_documents": 2, **counts}
    record = {"format_version": 1, "dtype": dtype, "train": split, "held_out": {"num_tokens": 3, "num_documents": 1}}
    (tmp_path / "pack.json").write_text(json.dumps(record))
    with pytest.raises(TrainError, match=r"pack\.json is damaged"):
        open_packed(tmp_path)


def test_a_record_nested_too_deep_is_refused(tmp_path):
    (tmp_path / "pack.json").write_text("[" * 100_000)
    with pytest.raises(TrainError, match="is no JSON"):
        open_packed(tmp_path)
