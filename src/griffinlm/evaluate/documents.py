"""Documents out of text files."""

import errno
import gzip
import io
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from griffinlm.errors import GriffinError
from griffinlm.text import Tokenizer

SUFFIXES_OF_ROWS = (".jsonl", ".jsonl.xz", ".jsonl.gz", ".jsonl.zst")
SUFFIXES = (*SUFFIXES_OF_ROWS, ".txt")

Row = TypeVar("Row")


class DocumentError(GriffinError):
    """A text file that cannot be read, or a row of it that is no document; the message names file and line."""


@dataclass(frozen=True)
class RowRules:
    """What counts as a document, and what happens to a row that is none."""

    field: str = "text"
    """Name of the field of a row that holds the text."""
    largest_row_bytes: int | None = None
    """A longer row is a bad one, and is never held in memory."""
    allow_empty: bool = True
    """Whether blank rows are passed over, and empty texts are documents."""
    on_bad_row: Callable[[DocumentError], None] | None = None
    """Called with the fault of every bad row, which is then left out; None raises it."""


def read_documents(path: Path, rules: RowRules = RowRules()) -> Iterator[str]:
    """The documents of a file: a field of each row in `.jsonl` (packed as .xz, .gz or .zst too), the whole `.txt`.

    Raises:
        DocumentError: the file cannot be read, has another name or no documents, is not UTF-8, or a row is no JSON
            object whose field is a string.
    """

    def text(values: Any) -> str:
        return _text(values, rules)

    yield from _read(
        path, SUFFIXES, lambda file: _whole(path, file) if path.suffix == ".txt" else _rows(path, file, rules, text)
    )


def read_token_ids(path: Path, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """The documents of a file as ids, each behind the begin token where the tokenizer has one; errors as above."""
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return ([*start, *tokenizer.encode(text)] for text in read_documents(path))


def read_rows(path: Path, parse: Callable[[Any], Row], rules: RowRules = RowRules()) -> Iterator[Row]:
    """What `parse` makes of the JSON value of every row of a `.jsonl` file, packed or not.

    Args:
        parse: raises a DocumentError that says what is wrong with a row; file and line are put in front of it.

    Raises:
        DocumentError: as `read_documents`.
    """
    yield from _read(path, SUFFIXES_OF_ROWS, lambda file: _rows(path, file, rules, parse))


def _read(path: Path, suffixes: tuple[str, ...], read: Callable[[IO[bytes]], Iterator[Row]]) -> Iterator[Row]:
    """All that `read` finds in a file, of which there must be something."""
    if not path.exists():
        raise DocumentError(f"text file {path} cannot be read: {os.strerror(errno.ENOENT)}")
    if not path.name.endswith(suffixes):
        raise DocumentError(f"text file {path} has an unknown ending; allowed are {', '.join(suffixes)}")
    num_documents = 0
    try:
        with _open(path) as file:
            for document in read(file):
                num_documents += 1
                yield document
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise _unreadable(path, error) from error
    except Exception as error:
        # The class is imported only where a file is packed so.
        if type(error).__name__ != "ZstdError":
            raise
        raise _unreadable(path, error) from error
    if not num_documents:
        raise DocumentError(f"text file {path} is empty; it must hold at least one document")


def _unreadable(path: Path, error: Exception) -> DocumentError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return DocumentError(f"text file {path} cannot be read: {reason}")


def _open(path: Path) -> IO[bytes]:
    match path.suffix:
        case ".xz":
            return io.BufferedReader(lzma.open(path, "rb"))
        case ".gz":
            return io.BufferedReader(gzip.open(path, "rb"))
        case ".zst":
            try:
                import zstandard
            except ModuleNotFoundError as error:
                raise DocumentError(f"{path} needs zstandard", hint="pip install 'griffinlm[train]'") from error
            return io.BufferedReader(zstandard.open(path, "rb"))
        case _:
            return open(path, "rb")


def _whole(path: Path, file: IO[bytes]) -> Iterator[str]:
    data = file.read()
    if data:
        yield _decode(data, path, 1)


def _rows(path: Path, file: IO[bytes], rules: RowRules, parse: Callable[[Any], Row]) -> Iterator[Row]:
    limit = -1 if rules.largest_row_bytes is None else rules.largest_row_bytes
    number = 0
    while line := file.readline(limit + 1 if limit >= 0 else -1):
        number += 1
        try:
            if limit >= 0 and len(line) > limit and not line.endswith(b"\n"):
                _pass_over_line(file)
                raise DocumentError(f"{path}, line {number}: the row is longer than {limit:,} bytes")
            if rules.allow_empty and not line.strip():
                continue
            yield _parsed(_decode(line, path, number), path, number, parse)
        except DocumentError as error:
            if rules.on_bad_row is None:
                raise
            rules.on_bad_row(error)


def _pass_over_line(file: IO[bytes]) -> None:
    while (piece := file.readline(1 << 20)) and not piece.endswith(b"\n"):
        pass


def _decode(data: bytes, path: Path, first_line: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        raise DocumentError(f"{path}, line {line}: it is not UTF-8 (byte 0x{data[error.start]:02x})") from None


def _parsed(row: str, path: Path, line: int, parse: Callable[[Any], Row]) -> Row:
    if not row.strip():
        raise DocumentError(f"{path}, line {line}: the row is empty")
    try:
        values = json.loads(row)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{path}, line {line}: the row is no JSON ({error})") from error
    try:
        return parse(values)
    except DocumentError as error:
        raise DocumentError(f"{path}, line {line}: {error}") from error


def _text(values: Any, rules: RowRules) -> str:
    name = json.dumps(rules.field)
    if not isinstance(values, dict) or rules.field not in values:
        raise DocumentError(f"the row has no field {name}")
    text = values[rules.field]
    if not isinstance(text, str):
        raise DocumentError(f"{name} is a {type(text).__name__}; it must be a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DocumentError(f"{name} holds half a surrogate pair, which is no character") from None
    if not text and not rules.allow_empty:
        raise DocumentError(f"{name} is empty")
    return text
