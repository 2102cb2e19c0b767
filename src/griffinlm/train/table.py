"""Tables of values as typed dataclasses: what a run's TOML file may hold is what the fields of a class say."""

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

from griffinlm.errors import shown
from griffinlm.train.errors import TrainError

Table = TypeVar("Table")


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers that a field may hold, both ends included; stands in `typing.Annotated`."""

    least: float
    most: float = math.inf

    def __str__(self) -> str:
        least, most = (f"{n:,}" if isinstance(n, int) else f"{n:g}" for n in (self.least, self.most))
        return f"{least} or more" if self.most == math.inf else f"{least} to {most}"


Share = Annotated[float, Range(0.0, 1.0)]


def read_toml(path: Path, changes: Sequence[str] = ()) -> dict[str, Any]:
    """The tables of a TOML file, with changes such as `optimizer.learning_rate=1e-3` made to them.

    Raises:
        TrainError: the file cannot be read, is no TOML, or a change is none.
    """
    try:
        values = tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise TrainError(f"configuration {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TrainError(f"configuration {path} is not UTF-8 at byte {error.start}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError of int's own
        raise TrainError(f"configuration {path} is no TOML: {error}") from error
    for change in changes:
        _make(values, change)
    return values


def _make(values: dict[str, Any], change: str) -> None:
    """Sets one value, as TOML writes it; a word that is no TOML value is taken as text."""
    name, equals, text = change.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise TrainError(f"change {change!r} is none; it must be KEY=VALUE, as in optimizer.learning_rate=1e-3")
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        parsed = {}
    # More entries than one come from further lines, which would be lost.
    value = parsed["value"] if len(parsed) == 1 else text
    table: Any = values
    for key in keys[:-1]:
        table = _entry(table, key, change)
    if isinstance(table, list):
        table[_index(table, keys[-1], change)] = value
    else:
        table[keys[-1]] = value


def _entry(table: Any, key: str, change: str) -> Any:
    """The table or list under `key`, made where it is missing."""
    found = table[_index(table, key, change)] if isinstance(table, list) else table.setdefault(key, {})
    if not isinstance(found, dict | list):
        raise TrainError(f"change {change!r} goes into {key}, which is {shown(found)} and no table")
    return found


def _index(table: list[Any], key: str, change: str) -> int:
    if not key.isdecimal() or int(key) >= len(table):
        raise TrainError(f"change {change!r} names entry {key!r} of a list; entries are 0 to {len(table) - 1}")
    return int(key)


def read_table(cls: type[Table], values: object, name: str = "") -> Table:
    """An instance of the dataclass `cls` whose fields are the entries of a table; fields with a default may be absent.

    Field types may be bool, int, float, str, Path, Literal, these in `Annotated[..., Range]`, `X | None`, dataclasses,
    `tuple[X, ...]`, `dict[str, X]`, and Any for what the caller reads himself.

    Args:
        name: dotted name of the table, for messages.

    Raises:
        TrainError: an entry is unknown, missing, of the wrong type or out of its range.
    """
    if not isinstance(values, Mapping):
        raise TrainError(f"{name or 'the configuration'} is {shown(values)}; it must be a table")
    prefix = f"{name}." if name else ""
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
    unknown = [f"{prefix}{key}" for key in values if key not in fields]
    if unknown:
        verb = "is" if len(unknown) == 1 else "are"
        raise TrainError(
            f"{', '.join(unknown[:5])} {verb} unknown; allowed {'in ' + name if name else 'at the top'} "
            f"are {', '.join(fields)}"
        )
    missing = [
        f"{prefix}{field.name}"
        for field in fields.values()
        if field.name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise TrainError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    hints = typing.get_type_hints(cls, include_extras=True)
    return cls(**{key: read_value(hints[key], value, f"{prefix}{key}") for key, value in values.items()})


def read_value(hint: Any, value: object, name: str) -> Any:
    """`value` as a field of type `hint` holds it; raises as `read_table` does."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return read_table(typing.cast(type, hint), value, name)
    if origin is typing.Annotated:
        found = read_value(arguments[0], value, name)
        limits: Range = arguments[1]
        if found is not None and not limits.least <= found <= limits.most:
            raise TrainError(f"{name} is {shown(value)}; it must be {limits}")
        return found
    if origin in (Union, types.UnionType):
        # TOML has no null: an absent entry is the only way to None.
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return read_value(inner, value, name)
    if origin is Literal:
        if value not in arguments:
            raise TrainError(f"{name} is {shown(value)}; allowed are {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise TrainError(f"{name} is {shown(value)}; it must be a list")
        return tuple(read_value(arguments[0], entry, f"{name}.{index}") for index, entry in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise TrainError(f"{name} is {shown(value)}; it must be a table")
        return {key: read_value(arguments[1], entry, f"{name}.{key}") for key, entry in value.items()}
    return _read_plain(hint, value, name)


WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path as text"}
"""What a value of a plain type is called."""


def _read_plain(hint: Any, value: object, name: str) -> Any:
    allowed = {float: (int, float), Path: (str,)}.get(hint, (hint,))
    if not isinstance(value, allowed) or (isinstance(value, bool) and hint is not bool):
        raise TrainError(f"{name} is {shown(value)}; it must be {WORDS[hint]}")
    if hint is float:
        try:
            number = float(typing.cast(float, value))
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise TrainError(f"{name} is {shown(value)}; it must be a finite number")
        return number
    if hint is Path:
        if not value:
            raise TrainError(f"{name} is empty; it must be a path")
        if "\0" in typing.cast(str, value):
            raise TrainError(f"{name} is {shown(value)}; no path has a NUL in it")
        return Path(typing.cast(str, value))
    return value
