"""Files of tasks are read the same packed or plain, and what is wrong in one is told with file and line."""

import json
import math

import pytest
from task_files import NUM_ROWS, made_rows, write_rows

from griffinlm.errors import GriffinError
from griffinlm.evaluate.tasks import METRICS, TASKS, perplexity, task_rows

GOOD = {"query": "is it?", "choices": ["no", "yes"], "gold": 1}


@pytest.mark.parametrize("name", TASKS)
def test_packed_and_plain_files_hold_the_same_rows_with_the_fields_of_the_task(name, tmp_path):
    (tmp_path / "packed").mkdir()
    (tmp_path / "plain").mkdir()
    packed = task_rows(name, write_rows(tmp_path / "packed", made_rows()))
    assert packed == task_rows(name, write_rows(tmp_path / "plain", made_rows(), ".jsonl"))
    assert len(packed) == NUM_ROWS - name.startswith("mmlu")
    assert all(row.keys() == TASKS[name].fields.keys() for row in packed)


def test_perplexity_is_that_of_the_mean_and_infinite_past_the_largest_float():
    assert perplexity([-1.0, -3.0]) == pytest.approx(math.e**2)
    assert perplexity([-2000.0, 0.0]) == math.inf


def test_every_metric_is_described():
    assert {metric for task in TASKS.values() for metric in task.metrics} == METRICS.keys()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"no json\n", "line 2: the row is no JSON"),
        (b"\xff\n", "line 2: it is not UTF-8 .byte 0xff"),
        (b"[1]\n", "line 2: the row is a list"),
        ({"query": "x", "gold": 0}, 'line 2: the row has no field "choices"'),
        ({**GOOD, "query": 3}, 'line 2: "query" is a int; it must be a str'),
        ({**GOOD, "gold": True}, 'line 2: "gold" is a bool'),
        ({**GOOD, "gold": 2}, r'line 2: "gold" is 2; it must be in 0\.\.1'),
        ({**GOOD, "gold": -1}, 'line 2: "gold" is -1'),
        ({**GOOD, "choices": ["x"]}, 'line 2: "choices" has 1 texts'),
        ({**GOOD, "choices": ["x", ""]}, "line 2: \"choices\" holds ''"),
        ({**GOOD, "choices": ["x", 1]}, 'line 2: "choices" holds 1'),
        ({**GOOD, "query": "\ud800"}, "half a surrogate pair"),
    ],
)
def test_a_damaged_row_is_refused_with_file_and_line(row, message, tmp_path):
    data = row if isinstance(row, bytes) else json.dumps(row).encode()
    (tmp_path / "copa.jsonl").write_bytes(json.dumps(GOOD).encode() + b"\n" + data)
    with pytest.raises(GriffinError, match=message) as error:
        task_rows("copa", tmp_path)
    assert "copa.jsonl" in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hellaswag", "no task 'hellaswag'; allowed are arc_challenge, arc_easy"),
        ("piqa", "task piqa has no file"),
        ("copa", "copa.jsonl is empty; it must hold at least one"),
        ("gsm8k_test", "5 rows that count; task gsm8k_test needs at least 6"),
        ("mmlu", "line 1: there are 2 choices; they must be 4"),
        ("boolq", "cannot be read"),
    ],
)
def test_a_task_that_cannot_be_asked_is_refused(name, message, tmp_path):
    write_rows(tmp_path, {"copa": [], "gsm8k_test": made_rows()["gsm8k_test"][:5]}, ".jsonl")
    write_rows(tmp_path, {"mmlu": [{**GOOD, "subject": "x", "split": "test"}]})
    (tmp_path / "boolq.jsonl.xz").write_bytes(b"not packed")
    with pytest.raises(GriffinError, match=message):
        task_rows(name, tmp_path)
