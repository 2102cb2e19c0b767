"""What the record of a measurement begins with, and where it lies."""

import json
from pathlib import Path

import pytest

from griffinlm.evaluate.record import header, write


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["eyas", "--rows", "8", "32"], "eyas --rows 8 32"),
        (["/a/b/stories.txt", "--out", "/a/b/"], "stories.txt --out b/"),
        (["first=/a/b/model", "second=work/b/model"], "first=model second=work/b/model"),
        (["a text / with a stroke"], "'a text / with a stroke'"),
    ],
)
def test_the_command_tells_no_place_of_the_machine(given: list[str], told: str):
    assert header("benchmarks/speed.py", given)["command"] == f"python benchmarks/speed.py {told}"


def test_a_record_is_named_by_machine_day_and_what_it_is_of(tmp_path: Path):
    record = {**header("benchmarks/speed.py", []), "processor": "Some (R) CPU @ 2.10GHz", "date": "2026-01-02", "x": 1}
    path = write(record, "speed", tmp_path / "new")
    assert path.name == "some-r-cpu-2-10ghz-2026-01-02-speed.json"
    assert json.loads(path.read_text(encoding="utf-8")) == record
