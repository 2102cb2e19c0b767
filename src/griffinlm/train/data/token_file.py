"""Token files: the documents of a source as numbers on the disk, mapped into memory, and their rows."""

import json
import operator
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from griffinlm.train.errors import TrainError

FORMAT_VERSION = 1
RECORD_FILE = "pack.json"
SPLITS = ("train", "held_out")
TOKENS_FILE, OFFSETS_FILE, BYTES_FILE = "tokens.bin", "offsets.int64", "bytes.int64"
"""Of a split: all tokens; the first token of every document and the number of tokens; its bytes of text in UTF-8."""

DTYPES = ("uint16", "uint32")

IGNORED = -100
"""The label of a token that is not to be predicted."""


class Row(NamedTuple):
    """Consecutive tokens of a token file; each array is int64 [T]."""

    tokens: np.ndarray
    positions: np.ndarray
    """Place in the document, from 0 where one starts and where the row starts; -1 for padding."""
    labels: np.ndarray
    """The next token, or IGNORED where that is padding, starts a document, or is not asked for."""


class TokenWriter:
    """Writes the documents of one split, each between BOS and EOS."""

    def __init__(self, directory: Path, dtype: np.dtype, bos_id: int, eos_id: int) -> None:
        directory.mkdir(parents=True)
        self._dtype, self._bos_id, self._eos_id = dtype, bos_id, eos_id
        self._tokens, self._offsets, self._bytes = (
            open(directory / name, "wb")  # noqa: SIM115  (closed by close())
            for name in (TOKENS_FILE, OFFSETS_FILE, BYTES_FILE)
        )
        self.num_tokens = self.num_documents = self.num_bytes = 0

    def add(self, ids: Iterable[int], num_bytes: int) -> None:
        """Appends a document of `num_bytes` in UTF-8."""
        document = np.array([self._bos_id, *ids, self._eos_id], self._dtype)
        self._tokens.write(document.tobytes())
        self._offsets.write(np.int64(self.num_tokens).tobytes())
        self._bytes.write(np.int64(num_bytes).tobytes())
        self.num_tokens += len(document)
        self.num_documents += 1
        self.num_bytes += num_bytes

    def close(self) -> None:
        self._offsets.write(np.int64(self.num_tokens).tobytes())
        for file in (self._tokens, self._offsets, self._bytes):
            file.close()


class TokenFile:
    """One split of a packed source, in the pages of its files."""

    def __init__(self, directory: Path, dtype: str, counts: dict[str, int], vocab_size: int = 2**32) -> None:
        """Maps the files; all but the tokens are checked, and these when their row is read.

        Raises:
            TrainError: a file is missing, has another size than the record says, or is damaged.
        """
        if dtype not in DTYPES:
            raise TrainError(
                f"{directory.parent / RECORD_FILE} is damaged: dtype is {dtype!r}; allowed are {', '.join(DTYPES)}"
            )
        self.num_tokens = operator.index(counts["num_tokens"])
        self.num_documents = operator.index(counts["num_documents"])
        self._path, self._vocab_size = directory / TOKENS_FILE, vocab_size
        self.tokens = _mapped(directory / TOKENS_FILE, np.dtype(dtype), self.num_tokens)
        self.offsets = _mapped(directory / OFFSETS_FILE, np.dtype(np.int64), self.num_documents + 1)
        self.text_bytes = _mapped(directory / BYTES_FILE, np.dtype(np.int64), self.num_documents)
        if self.offsets[0] != 0 or self.offsets[-1] != self.num_tokens or (self.offsets[1:] <= self.offsets[:-1]).any():
            raise TrainError(f"{directory / OFFSETS_FILE} is damaged: it does not rise from 0 to {self.num_tokens:,}")
        if (self.text_bytes <= 0).any():
            raise TrainError(f"{directory / BYTES_FILE} is damaged: a document has no bytes")

    def num_rows(self, row_tokens: int) -> int:
        """Whole rows: every token but the first of the file is the label of at most one of them."""
        return max(self.num_tokens - 1, 0) // row_tokens

    def row(self, index: int, row_tokens: int) -> Row:
        """Row `index` for training: that a document ends is learned, that the next one begins is not.

        Raises:
            TrainError: a token is not in the vocabulary.
        """
        first = index * row_tokens
        tokens = self._ids(first, first + row_tokens + 1)
        starts = self._starts(first, first + row_tokens)
        labels = tokens[1:].copy()
        labels[starts[starts > 0] - 1] = IGNORED
        return Row(tokens[:-1], _positions(row_tokens, starts), labels)

    def held_out_rows(self, row_tokens: int, max_tokens: int) -> tuple[list[Row], int]:
        """Rows of the first whole documents within `max_tokens` (of one at least), and their bytes of text.

        Every token of a text is a label of exactly one row; neither BOS nor EOS is any. The last row is padded.

        Raises:
            TrainError: a token is not in the vocabulary.
        """
        if not self.num_documents:
            return [], 0
        num_documents = max(int(np.searchsorted(self.offsets, max_tokens, "right")) - 1, 1)
        end = int(self.offsets[num_documents])
        rows = []
        for first in range(0, end - 1, row_tokens):
            last = min(first + row_tokens, end - 1)
            tokens = self._ids(first, last + 1)
            starts = self._starts(first, last + 1)
            labels = tokens[1:].copy()
            for before in (1, 2):  # the BOS at a start, and the EOS before it
                labels[starts[(starts >= before) & (starts - before < len(labels))] - before] = IGNORED
            rows.append(_padded(tokens[:-1], _positions(len(labels), starts), labels, row_tokens))
        return rows, int(self.text_bytes[:num_documents].sum())

    def _ids(self, first: int, end: int) -> np.ndarray:
        ids = np.asarray(self.tokens[first:end], np.int64)
        if ids.max() >= self._vocab_size:
            raise TrainError(
                f"{self._path} is damaged: token {ids.max()} at place {first + ids.argmax()}; "
                f"the vocabulary has {self._vocab_size}"
            )
        return ids

    def _starts(self, first: int, last: int) -> np.ndarray:
        """Where documents start, and the last one ends, among the tokens `first` to `last`, counted from `first`."""
        begin = np.searchsorted(self.offsets, first)
        return np.asarray(self.offsets[begin : np.searchsorted(self.offsets, last, "right")]) - first


class Packed(NamedTuple):
    """A packed source."""

    directory: Path
    record: dict[str, Any]
    train: TokenFile
    held_out: TokenFile


def open_packed(directory: Path, vocab_size: int = 2**32) -> Packed:
    """The source that `griffin train pack` wrote.

    Args:
        vocab_size: tokens from this number on are refused when their row is read.

    Raises:
        TrainError: it is none, is of another version, or its files are damaged.
    """
    path = directory / RECORD_FILE
    try:
        record = json.loads(path.read_bytes())
    except OSError as error:
        raise TrainError(f"{directory} holds no packed source: {error.strerror} ({RECORD_FILE})") from error
    except (ValueError, RecursionError) as error:
        raise TrainError(f"{path} is no JSON: {error}") from error
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != FORMAT_VERSION:
        raise TrainError(f"{path} has format_version {version!r}; this version of griffinlm reads {FORMAT_VERSION}")
    try:
        train, held_out = (TokenFile(directory / split, record["dtype"], record[split], vocab_size) for split in SPLITS)
    except (KeyError, TypeError) as error:
        raise TrainError(f"{path} is damaged: {error!r}") from error
    return Packed(directory, record, train, held_out)


def _mapped(path: Path, dtype: np.dtype, length: int) -> np.ndarray:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise TrainError(f"{path} cannot be read: {error.strerror}") from error
    if found != length * dtype.itemsize:
        raise TrainError(f"{path} has {found:,} bytes; {RECORD_FILE} says {length * dtype.itemsize:,}")
    return np.memmap(path, dtype, "r") if length else np.zeros(0, dtype)


def _positions(num_tokens: int, starts: np.ndarray) -> np.ndarray:
    """Tokens since the last start, or since the row's beginning."""
    index = np.arange(num_tokens)
    last_start = np.zeros(num_tokens, np.int64)
    inside = starts[starts < num_tokens]
    last_start[inside] = inside
    return index - np.maximum.accumulate(last_start)


def _padded(tokens: np.ndarray, positions: np.ndarray, labels: np.ndarray, num_tokens: int) -> Row:
    missing = (0, num_tokens - len(tokens))
    return Row(
        np.pad(tokens, missing),
        np.pad(positions, missing, constant_values=-1),
        np.pad(labels, missing, constant_values=IGNORED),
    )
