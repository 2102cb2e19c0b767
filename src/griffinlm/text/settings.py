"""What stands beside a tokenizer's vocabulary: `tokenizer_config.json` and `chat_template.jinja`."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from griffinlm.errors import in_one_line
from griffinlm.text.errors import TokenizerError
from griffinlm.text.unicode import well_formed

ROLES = ("bos", "eos", "pad", "unk")


@dataclass(frozen=True)
class TokenizerSettings:
    """What a model's author says about tokens: names, never ids."""

    names: Mapping[str, str | None]
    """Token by role (`bos`, `eos`, `pad`, `unk`); None where the file says that there is none, absent where silent."""
    control: tuple[str, ...] = ()
    """Further tokens that are control tokens."""
    chat_template: str | None = None


def read_settings(directory: Path) -> TokenizerSettings:
    """The settings in `directory`; files that are not there say nothing.

    Raises:
        TokenizerError: a file cannot be read, is no JSON table, or holds a value of the wrong type.
    """
    path = directory / "tokenizer_config.json"
    values = _read_table(path) if os.path.exists(path) else {}
    names = {
        role: None if values[f"{role}_token"] is None else _token_name(path, f"{role}_token", values[f"{role}_token"])
        for role in ROLES
        if f"{role}_token" in values
    }
    template = directory / "chat_template.jinja"
    return TokenizerSettings(
        names=names,
        control=tuple(dict.fromkeys(_control_names(path, values))),
        chat_template=_read_text(template) if os.path.exists(template) else _chat_template(path, values),
    )


def read_file(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        TokenizerError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as fault:
        raise TokenizerError(f"{path} cannot be read: {in_one_line(fault.strerror or fault)}") from None


def _read_text(path: Path) -> str:
    try:
        return read_file(path).decode("utf-8")
    except UnicodeDecodeError as fault:
        raise TokenizerError(f"{path} is not UTF-8: {in_one_line(fault)}") from None


def _read_table(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_read_text(path))
    except (ValueError, RecursionError) as fault:
        if isinstance(fault, TokenizerError):
            raise
        raise TokenizerError(f"{path} is not JSON: {in_one_line(fault)}") from None
    if not isinstance(values, dict):
        raise TokenizerError(f"{path} holds {type(values).__name__}; it must be a table of fields")
    return values


def _control_names(path: Path, values: dict[str, Any]) -> Iterable[str]:
    for field in ("additional_special_tokens", "extra_special_tokens"):
        listed = values.get(field) or []
        if not isinstance(listed, list | dict):
            raise _wrong_type(path, field, listed, "a list of tokens")
        for token in listed.values() if isinstance(listed, dict) else listed:
            yield _token_name(path, field, token)
    added = values.get("added_tokens_decoder") or {}
    if not isinstance(added, dict):
        raise _wrong_type(path, "added_tokens_decoder", added, "a table of tokens")
    for token in added.values():
        name = _token_name(path, "added_tokens_decoder", token)
        if isinstance(token, dict) and token.get("special") is True:
            yield name


def _chat_template(path: Path, values: dict[str, Any]) -> str | None:
    """The template of that name, or of several named ones the default."""
    template = values.get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else template
    if template is not None and not isinstance(template, str):
        raise _wrong_type(path, "chat_template", template, "text, or a list with a template named default")
    return template if template is None else well_formed(template)


def _token_name(path: Path, field: str, value: object) -> str:
    """A token that is written as text or as a table with `content`."""
    name = value.get("content") if isinstance(value, dict) else value
    if not isinstance(name, str) or not name:
        raise _wrong_type(path, field, value, 'a token: text or {"content": text}')
    return well_formed(name)


def _wrong_type(path: Path, field: str, value: object, allowed: str) -> TokenizerError:
    return TokenizerError(f"{path}: {field} is {in_one_line(repr(value))}; it must be {allowed}")
