"""Documents out of text files."""

import io
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from griffinlm.errors import GriffinError

SUFFIXES = (".jsonl", ".jsonl.xz", ".txt")


class DocumentError(GriffinError):
    """A text file that cannot be read, or a row of it that is no document; the message names file and line."""


def read_documents(path: Path) -> Iterator[str]:
    """The documents of a file: each row's "text" in `.jsonl` and `.jsonl.xz`, the whole file in `.txt`.

    Raises:
        DocumentError: the file cannot be read, has another name or no documents, is not UTF-8, or a row is no JSON
            object whose "text" is a string.
    """
    if not path.name.endswith(SUFFIXES):
        raise DocumentError(f"text file {path} has an unknown ending; allowed are {', '.join(SUFFIXES)}")
    num_documents = 0
    try:
        with _open(path) as file:
            for document in _whole(path, file) if path.suffix == ".txt" else _rows(path, file):
                num_documents += 1
                yield document
    except (OSError, EOFError, lzma.LZMAError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DocumentError(f"text file {path} cannot be read: {reason}") from error
    if not num_documents:
        raise DocumentError(f"text file {path} is empty; it must hold at least one document")


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".xz":
        return io.BufferedReader(lzma.open(path, "rb"))
    return open(path, "rb")


def _whole(path: Path, file: BinaryIO) -> Iterator[str]:
    data = file.read()
    if data:
        yield _decode(data, path, 1)


def _rows(path: Path, file: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield _document(_decode(line, path, number), path, number)


def _decode(data: bytes, path: Path, first_line: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        raise DocumentError(f"{path}, line {line}: it is not UTF-8 (byte 0x{data[error.start]:02x})") from None


def _document(row: str, path: Path, line: int) -> str:
    try:
        values = json.loads(row)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{path}, line {line}: the row is no JSON ({error})") from error
    if not isinstance(values, dict) or "text" not in values:
        raise DocumentError(f'{path}, line {line}: the row has no field "text"')
    text = values["text"]
    if not isinstance(text, str):
        raise DocumentError(f'{path}, line {line}: "text" is a {type(text).__name__}; it must be a string')
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DocumentError(f'{path}, line {line}: "text" holds half a surrogate pair, which is no character') from None
    return text
