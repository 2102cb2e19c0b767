"""Tasks with answers that can be checked: which file, which fields, which prompt. Plain data for the harness.

Prompts and metrics are those that lm-evaluation-harness has for the same data.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from griffinlm.errors import GriffinError
from griffinlm.evaluate.documents import DocumentError, read_rows
from griffinlm.evaluate.rows import Row, checked_row


class TaskError(GriffinError):
    """A task that there is not, or whose file is missing or does not hold what it must."""


@dataclass(frozen=True)
class TaskDefinition:
    """One task: rows of a file and how the harness asks them."""

    fields: Mapping[str, type]
    """What every row must have."""
    harness: Mapping[str, Any]
    """Fields of the harness' `TaskConfig`; a function takes a row."""
    metrics: tuple[str, ...]
    file: str | None = None
    """Name of the file without its ending; None is the name of the task."""
    num_examples: int = 0
    """Solved examples before each question, drawn from the other rows of the file."""
    is_asked: Callable[[Row], bool] = field(default=lambda row: True)
    """Which rows count."""


CHOICE_FIELDS = {"query": str, "choices": list, "gold": int}
CHOICE = {"output_type": "multiple_choice", "doc_to_text": "query", "doc_to_choice": "choices", "doc_to_target": "gold"}
ACCURACY = ("acc",)
ACCURACIES = ("acc", "acc_norm")
"""Of the likeliest choice, and of the likeliest a character."""

LETTERS = ["A", "B", "C", "D"]

TASKS: dict[str, TaskDefinition] = {
    "arc_challenge": TaskDefinition(CHOICE_FIELDS, CHOICE, ACCURACIES),
    "arc_easy": TaskDefinition(CHOICE_FIELDS, CHOICE, ACCURACIES),
    "boolq": TaskDefinition(
        CHOICE_FIELDS, {**CHOICE, "doc_to_text": lambda row: row["query"].removeprefix("Passage: ")}, ACCURACY
    ),
    "copa": TaskDefinition(CHOICE_FIELDS, CHOICE, ACCURACY),
    "gsm8k_test": TaskDefinition(
        {"question": str, "answer": str},
        {
            "output_type": "generate_until",
            "doc_to_text": lambda row: f"Question: {row['question']}\nAnswer:",
            "doc_to_target": "answer",
            "generation_kwargs": {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False},
            "filter_list": [
                {"name": name, "filter": [{"function": "regex", **regex}, {"function": "take_first"}]}
                for name, regex in {
                    "strict-match": {"regex_pattern": r"#### (\-?[0-9\.\,]+)"},
                    "flexible-extract": {"group_select": -1, "regex_pattern": r"(-?[$0-9.,]{2,})|(-?[0-9]+)"},
                }.items()
            ],
        },
        ("exact_match",),
        num_examples=5,
    ),
    "lambada_openai": TaskDefinition(
        {"context": str, "continuation": str},
        {
            "output_type": "loglikelihood",
            "doc_to_text": "context",
            "doc_to_target": lambda row: f" {row['continuation']}",
        },
        ("perplexity", "acc"),
    ),
    "mmlu": TaskDefinition(
        {**CHOICE_FIELDS, "subject": str, "split": str},
        {
            **CHOICE,
            "description": "The following are multiple choice questions (with answers) about "
            "{{subject|replace('_', ' ')}}.\n\n",
            "doc_to_text": lambda row: _lettered(row),
            "doc_to_choice": LETTERS,
        },
        ACCURACY,
        is_asked=lambda row: row["split"] == "test",
    ),
    "mmlu_continuation": TaskDefinition(
        {**CHOICE_FIELDS, "split": str}, CHOICE, ACCURACIES, file="mmlu", is_asked=lambda row: row["split"] == "test"
    ),
    "openbook_qa": TaskDefinition(CHOICE_FIELDS, CHOICE, ACCURACIES),
    "piqa": TaskDefinition(CHOICE_FIELDS, CHOICE, ACCURACIES),
    "winogrande": TaskDefinition(
        {"context_options": list, "continuation": str, "gold": int},
        # A text that is a number tells the harness to score one target after each of the choices.
        {**CHOICE, "doc_to_text": "gold", "doc_to_choice": "context_options", "doc_to_target": "continuation"},
        ACCURACY,
    ),
}

METRICS: dict[str, dict[str, Any]] = {
    "acc": {"aggregation": "mean", "higher_is_better": True},
    "acc_norm": {"aggregation": "mean", "higher_is_better": True},
    "perplexity": {"aggregation": lambda values: perplexity(values), "higher_is_better": False},
    "exact_match": {
        "aggregation": "mean",
        "higher_is_better": True,
        "ignore_case": True,
        "ignore_punctuation": False,
        "regexes_to_ignore": [",", r"\$", "(?s).*#### ", r"\.$"],
    },
}
"""Of each metric, what the harness wants to know."""


def perplexity(log_probabilities: Sequence[float]) -> float:
    """exp(-mean), infinite where no float holds it."""
    try:
        return math.exp(-math.fsum(log_probabilities) / len(log_probabilities))
    except OverflowError:
        return math.inf


def require_task(name: str) -> TaskDefinition:
    """Raises TaskError where there is no task of that name."""
    if name not in TASKS:
        raise TaskError(f"there is no task {name!r}; allowed are {', '.join(TASKS)}")
    return TASKS[name]


def task_rows(name: str, directory: Path) -> list[Row]:
    """The rows of a task's file that count, `NAME.jsonl.xz` or `NAME.jsonl` in a directory.

    Raises:
        TaskError: there is no such task, no such file, or too few rows.
        DocumentError: the file is empty, or a row lacks a field or holds something else in it; the message names file
            and line.
    """
    task = require_task(name)
    candidates = [directory / f"{task.file or name}{ending}" for ending in (".jsonl.xz", ".jsonl")]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise TaskError(f"task {name} has no file: there is neither {candidates[0]} nor {candidates[1].name}")
    rows = [row for row in read_rows(path, lambda values: _task_row(task, values)) if task.is_asked(row)]
    if len(rows) <= task.num_examples:
        raise TaskError(f"{path} has {len(rows)} rows that count; task {name} needs at least {task.num_examples + 1}")
    return rows


def _task_row(task: TaskDefinition, values: Any) -> Row:
    row = checked_row(values, task.fields)
    if "gold" not in row:
        return row
    choices = row["choices"] if "choices" in row else row["context_options"]
    letters = task.harness["doc_to_choice"]
    if isinstance(letters, list) and len(choices) != len(letters):
        raise DocumentError(f"there are {len(choices)} choices; they must be {len(letters)}")
    if not 0 <= row["gold"] < len(choices):
        raise DocumentError(f'"gold" is {row["gold"]}; it must be in 0..{len(choices) - 1}')
    return row


def _lettered(row: Row) -> str:
    question = row["query"].removeprefix("Question: ").removesuffix("\nAnswer:").strip()
    choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=True))
    return f"{question}\n{choices}\nAnswer:"
