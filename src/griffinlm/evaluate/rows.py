"""Rows of a task's file, checked for the fields that the task needs."""

from collections.abc import Mapping
from typing import Any

from griffinlm.evaluate.documents import DocumentError

Row = dict[str, Any]


def checked_row(values: Any, fields: Mapping[str, type]) -> Row:
    """Those fields of a row of JSON lines, as `documents.read_rows` parses it.

    Args:
        fields: name and type of each; a list holds at least two texts, none of them empty.

    Raises:
        DocumentError: the row is no JSON object, or lacks a field or has another type in it.
    """
    if not isinstance(values, dict):
        raise DocumentError(f"the row is a {type(values).__name__}; it must be an object")
    for name, kind in fields.items():
        _check(values, name, kind)
    return {name: values[name] for name in fields}


def _check(row: Row, name: str, kind: type) -> None:
    if name not in row:
        raise DocumentError(f'the row has no field "{name}"')
    value = row[name]
    if type(value) is not kind:
        raise DocumentError(f'"{name}" is a {type(value).__name__}; it must be a {kind.__name__}')
    texts = [value] if kind is str else value if kind is list else []
    if kind is list and len(texts) < 2:
        raise DocumentError(f'"{name}" has {len(texts)} texts; it must have at least two')
    for text in texts:
        if not isinstance(text, str) or not text:
            raise DocumentError(f'"{name}" holds {text!r}; it must be text of at least one character')
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise DocumentError(f'"{name}" holds half a surrogate pair, which is no character')
