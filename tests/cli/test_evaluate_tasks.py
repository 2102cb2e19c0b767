"""griffin evaluate --tasks and --recall: the figures of the library; options that do not go together are refused."""

import dataclasses
import json
import sys

import pytest

import griffinlm
from griffinlm.evaluate.recall import evaluate_recall
from griffinlm.evaluate.tasks import TASKS

pytest.importorskip("lm_eval", exc_type=ImportError)

ROWS = [
    {"query": "the hawk and the", "choices": ["griffin", "hill", "hunt"][i % 2 :][:2], "gold": i % 2} for i in range(5)
]


@pytest.fixture
def data(tmp_path):
    (tmp_path / "copa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def test_tasks_are_those_of_the_library(griffin, tiny_model_directory, data):
    from griffinlm.evaluate.harness import evaluate_tasks

    run = griffin("evaluate", tiny_model_directory, "--tasks", "copa", "--data", data, "--limit", "4", "--json")
    expected = evaluate_tasks(griffinlm.load(tiny_model_directory), ["copa"], data, limit=4)
    assert (run.status, run.err) == (0, "")
    assert run.json == {"tasks": [dataclasses.asdict(figure) for figure in expected]}
    assert run.json["tasks"][0]["documents"] == 4


def test_a_table_has_a_line_for_each_metric(griffin, tiny_model_directory, data):
    run = griffin("evaluate", "--model", tiny_model_directory, "--tasks", "copa", "--data", data, "--batch", "1")
    assert (run.status, run.err) == (0, "")
    header, line = run.out.splitlines()
    assert header.split() == ["task", "metric", "value", "standard", "error", "documents"]
    assert line.split()[:2] == ["copa", "acc"]
    assert line.split()[-1] == "5"


def test_recall_is_that_of_the_library(griffin, tiny_model_directory):
    asked = ("--recall", "needle,induction_heads", "--lengths", "120, 90", "--examples", "3", "--seed", "4")
    run = griffin("evaluate", tiny_model_directory, *asked, "--json")
    model = griffinlm.load(tiny_model_directory)
    expected = evaluate_recall(model, ["needle", "induction_heads"], [120, 90], 3, 4)
    assert (run.status, run.err) == (0, "")
    assert run.json["window_tokens"] == model.config.attention.window_tokens
    assert run.json["recall"] == [dataclasses.asdict(figure) for figure in expected]
    table = griffin("evaluate", tiny_model_directory, *asked).out.splitlines()
    assert [line.split()[:2] for line in table[1:]] == [[f.task, str(f.length)] for f in expected]


def test_tasks_without_the_harness_say_what_to_install(griffin, tiny_model_directory, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    run = griffin("evaluate", tiny_model_directory, "--tasks", "copa", "--data", data)
    assert run.status == 2
    error, hint = run.err.splitlines()
    assert "lm-evaluation-harness is not installed" in error
    assert "pip install" in hint


def test_an_unknown_task_is_refused_with_the_list_of_all(griffin, tiny_model_directory, data):
    error = griffin.fails("evaluate", tiny_model_directory, "--tasks", "copa,hellaswag", "--data", data)
    assert "'hellaswag'" in error
    assert all(name in error for name in TASKS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing is asked for"),
        (["--text", "a.txt", "--tasks", "copa"], "--text and --tasks"),
        (["--tasks", "copa"], "without --data"),
        (["--recall", "needle"], "without --lengths"),
        (["--text", "a.txt", "--data", "x"], "--data is given, which --text does not have"),
        (["--text", "a.txt", "--batch", "2"], "--batch is given, which --text does not have"),
        (["--tasks", "copa", "--data", "x", "--seed", "1"], "--seed is given, which --tasks does not have"),
        (["--recall", "needle", "--lengths", "64", "--limit", "1"], "--limit is given, which --recall does not have"),
        (["--recall", "memory", "--lengths", "64"], "no recall task 'memory'"),
        (["--recall", "needle", "--lengths", "64,x"], "lengths is '64,x'"),
        (["--recall", "needle", "--lengths", "2"], "needle needs at least"),
        (["--recall", "needle,needle", "--lengths", "64"], "names something twice"),
        (["--tasks", "piqa", "--data", "no such directory"], "task piqa has no file"),
        (["--model", "eyas", "--text", "a.txt"], "the model is given twice"),
    ],
)
def test_options_that_do_not_go_together_are_refused(griffin, tiny_model_directory, options, message):
    assert message in griffin.fails("evaluate", tiny_model_directory, *options)
