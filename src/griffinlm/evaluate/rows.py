"""Rows of a JSON lines file, checked for the fields that a task needs."""

import json
import lzma
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from griffinlm.evaluate.documents import DocumentError

Row = dict[str, Any]


def read_rows(path: Path, fields: Mapping[str, type]) -> Iterator[tuple[int, Row]]:
    """Line number and those fields of every row of a `.jsonl` or `.jsonl.xz` file; blank lines are passed over.

    Args:
        fields: name and type of each; a list holds at least two texts, none of them empty.

    Raises:
        DocumentError: the file cannot be read or is not UTF-8; or a row is no JSON object, or lacks a field or has
            another type in it, which the message names with file and line.
    """
    opened = lzma.open if path.suffix == ".xz" else open
    try:
        with opened(path, "rb") as file:
            for line, data in enumerate(file, 1):
                if data.strip():
                    row = _object(data, f"{path}, line {line}")
                    for name, kind in fields.items():
                        _check(row, name, kind, f"{path}, line {line}")
                    yield line, {name: row[name] for name in fields}
    except (OSError, EOFError, lzma.LZMAError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DocumentError(f"file {path} cannot be read: {reason}") from error


def _object(data: bytes, where: str) -> Row:
    try:
        row = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{where}: the row is no JSON in UTF-8 ({error})") from error
    if not isinstance(row, dict):
        raise DocumentError(f"{where}: the row is a {type(row).__name__}; it must be an object")
    return row


def _check(row: Row, name: str, kind: type, where: str) -> None:
    if name not in row:
        raise DocumentError(f'{where}: the row has no field "{name}"')
    value = row[name]
    if type(value) is not kind:
        raise DocumentError(f'{where}: "{name}" is a {type(value).__name__}; it must be a {kind.__name__}')
    texts = [value] if kind is str else value if kind is list else []
    if kind is list and len(texts) < 2:
        raise DocumentError(f'{where}: "{name}" has {len(texts)} texts; it must have at least two')
    for text in texts:
        if not isinstance(text, str) or not text:
            raise DocumentError(f'{where}: "{name}" holds {text!r}; it must be text of at least one character')
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise DocumentError(f'{where}: "{name}" holds half a surrogate pair, which is no character')
