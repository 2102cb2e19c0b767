"""What a run's TOML file may say: every key with what it may be and means, read off the configuration's classes."""

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union

from griffinlm.train.alignment.config import DpoConfig, RewardConfig, RlooConfig
from griffinlm.train.config import PretrainConfig
from griffinlm.train.table import WORDS
from griffinlm.train.tuning_config import TuningConfig

KINDS: dict[str, type] = {
    "pretrain": PretrainConfig,
    "sft": TuningConfig,
    "reward": RewardConfig,
    "rloo": RlooConfig,
    "dpo": DpoConfig,
}
"""The configuration of every `griffin train` command that takes one."""


class Key(NamedTuple):
    """An entry of a run's file."""

    name: str
    """Dotted; NAME stands for a name of the user's, N for a place in a list of tables."""
    allowed: str
    default: str
    """As TOML writes it, "required", or "none"."""
    meaning: str


def keys_of(cls: type, prefix: str = "") -> Iterator[Key]:
    """All entries of a configuration, those of its tables behind each."""
    meanings, hints = field_docstrings(cls), typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint, name, suffix = _plain(hints[field.name]), prefix + field.name, ""
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin is dict and dataclasses.is_dataclass(arguments[1]):
            hint, suffix = arguments[1], ".NAME"
        elif origin is tuple and dataclasses.is_dataclass(arguments[0]):
            hint, suffix = arguments[0], ".N"
        if dataclasses.is_dataclass(hint):
            meaning = meanings.get(field.name) or (inspect.getdoc(hint) or "")
            yield Key(name + suffix, "a table", _default(field), meaning)
            yield from keys_of(typing.cast(type, hint), f"{name}{suffix}.")
        else:
            yield Key(name, _allowed(hints[field.name]), _default(field), meanings.get(field.name, ""))


def field_docstrings(cls: type) -> dict[str, str]:
    """The texts that stand behind the fields of a class and of those it is derived from, each on one line."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        name = None
        for statement in definition.body:
            match statement:
                case ast.AnnAssign(target=ast.Name(id=name)):
                    pass
                case ast.Expr(value=ast.Constant(value=str(text))) if name is not None:
                    found[name] = " ".join(text.split())
                case _:
                    name = None
    return found


def _plain(hint: Any) -> Any:
    """A type without Annotated and without None."""
    if typing.get_origin(hint) is typing.Annotated:
        return _plain(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (Union, types.UnionType):
        (inner,) = (one for one in typing.get_args(hint) if one is not type(None))
        return _plain(inner)
    return hint


def _allowed(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        (inner,) = (one for one in arguments if one is not type(None))
        return _allowed(inner)
    if origin is typing.Annotated:
        return f"{_allowed(arguments[0])}, {arguments[1]}"
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is tuple:
        return f"a list: {_allowed(arguments[0])}"
    if origin is dict:
        return f"a table: {_allowed(arguments[1])}" if arguments[1] is not Any else "a table"
    return WORDS[hint]


def _default(field: dataclasses.Field) -> str:
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return "required"
    value = field.default
    if value is None:
        return "none"
    if value is dataclasses.MISSING or value == ():
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str | Path) else str(value)
