"""Rows of token files, against what a list of the documents says by hand."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from griffinlm.train.data.token_file import IGNORED, TokenFile, TokenWriter

BOS, EOS = 1, 2
Documents = list[list[int]]

documents = st.lists(st.lists(st.integers(3, 60_000), max_size=12), min_size=1, max_size=8)


def token_file(directory: Path, texts: Documents) -> TokenFile:
    writer = TokenWriter(directory, np.dtype("<u2"), BOS, EOS)
    for ids in texts:
        writer.add(ids, 3 * len(ids))
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
    assert num_bytes == 3 * len(labels)
    assert all(len(row.tokens) == len(row.positions) == len(row.labels) == row_tokens for row in rows)
    padding = np.concatenate([row.positions for row in rows]) < 0
    assert (~padding).sum() == sum(len(ids) + 2 for ids in taken) - 1


def test_an_empty_split_has_no_rows(tmp_path):
    file = token_file(tmp_path / "held_out", [])
    assert file.num_rows(4) == 0
    assert file.held_out_rows(4, 100) == ([], 0)


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.int64", "bytes.int64"])
def test_a_cut_file_is_refused(tmp_path, name):
    from griffinlm.train.errors import TrainError

    token_file(tmp_path / "train", [[3, 4], [5]])
    path = tmp_path / "train" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TrainError, match=rf"{name} has .* bytes; pack\.json says"):
        TokenFile(tmp_path / "train", "uint16", {"num_tokens": 7, "num_documents": 2})
