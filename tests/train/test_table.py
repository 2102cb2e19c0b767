"""Typed tables: what fits is read, and what does not is told with its name, the value and what is allowed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest

from griffinlm.train.errors import TrainError
from griffinlm.train.table import Range, read_table, read_toml


@dataclass(frozen=True)
class Inner:
    number: Annotated[float, Range(0.0, 2.0)]
    on: bool = False


@dataclass(frozen=True)
class Outer:
    inner: Inner
    count: Annotated[int, Range(1)] = 1
    name: str = "x"
    path: Path = Path("here")
    kind: Literal["one", "two"] = "one"
    limit: int | None = None
    many: tuple[Inner, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)


def test_a_table_becomes_its_dataclass():
    values = {
        "inner": {"number": 1},
        "count": 3,
        "path": "there",
        "kind": "two",
        "limit": 5,
        "many": [{"number": 0.5, "on": True}],
        "weights": {"a": 1, "b": 0.5},
    }
    expected = Outer(Inner(1.0), 3, "x", Path("there"), "two", 5, (Inner(0.5, True),), {"a": 1.0, "b": 0.5})
    found = read_table(Outer, values)
    assert found == expected
    assert isinstance(found.inner.number, float)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "inner is missing"),
        ({"inner": {}}, "inner.number is missing"),
        ({"inner": 5}, "inner is 5; it must be a table"),
        ({"inner": {"number": 3}}, "inner.number is 3; it must be 0 to 2"),
        ({"inner": {"number": "1"}}, "inner.number is '1'; it must be a number"),
        ({"inner": {"number": float("nan")}}, "inner.number is nan; it must be a finite number"),
        ({"inner": {"number": True}}, "inner.number is True; it must be a number"),
        ({"inner": {"number": 1, "off": 1}}, "inner.off is unknown; allowed in inner are number, on"),
        ({"inner": {"number": 1, "on": 1}}, "inner.on is 1; it must be true or false"),
        ({"inner": {"number": 1}, "count": 0}, "count is 0; it must be 1 or more"),
        ({"inner": {"number": 1}, "count": 1.0}, "count is 1.0; it must be a whole number"),
        ({"inner": {"number": 1}, "kind": "six"}, "kind is 'six'; allowed are one, two"),
        ({"inner": {"number": 1}, "path": ""}, "path is empty; it must be a path"),
        ({"inner": {"number": 1}, "many": {}}, "many is a table; it must be a list"),
        ({"inner": {"number": 1}, "many": [{"number": 1}, {}]}, "many.1.number is missing"),
        ({"inner": {"number": 1}, "weights": {"a": "much"}}, "weights.a is 'much'; it must be a number"),
        ({"inner": {"number": 1}, "x": 1, "y": 2}, "x, y are unknown; allowed at the top are inner, count"),
    ],
)
def test_what_does_not_fit_is_told_by_name(values, told):
    with pytest.raises(TrainError) as caught:
        read_table(Outer, values)
    assert str(caught.value).startswith(told)


def test_changes_set_entries_of_tables_and_lists(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('x = 1\n[t]\ny = "old"\n[[list]]\nz = 1\n[[list]]\nz = 2\n')
    changes = ["x=2.5", "t.y=new words", "t.more.deep=true", "list.1.z=[1, 2]"]
    assert read_toml(path, changes) == {
        "x": 2.5,
        "t": {"y": "new words", "more": {"deep": True}},
        "list": [{"z": 1}, {"z": [1, 2]}],
    }


@pytest.mark.parametrize("change", ["", "x", "=1", "x..y=1", "x.y=1", "list.2.z=1", "list.first.z=1"])
def test_a_change_that_cannot_be_made_is_refused(tmp_path, change):
    path = tmp_path / "a.toml"
    path.write_text("x = 1\n[[list]]\nz = 1\n")
    with pytest.raises(TrainError, match="change "):
        read_toml(path, [change])


@pytest.mark.parametrize(
    ("data", "told"),
    [(b"x = ", "is no TOML"), (b"x = 1" + b"0" * 5000, "is no TOML"), (b"\xff", "is not UTF-8 at byte 0")],
)
def test_a_damaged_file_is_refused(tmp_path, data, told):
    (tmp_path / "a.toml").write_bytes(data)
    with pytest.raises(TrainError, match=told):
        read_toml(tmp_path / "a.toml")
    with pytest.raises(TrainError, match="cannot be read: No such file"):
        read_toml(tmp_path / "b.toml")
