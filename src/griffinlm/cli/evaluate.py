"""griffin evaluate: held-out bits per byte, tasks with answers, synthetic recall."""

import dataclasses
import importlib.util
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from griffinlm.cli import options as o
from griffinlm.cli.output import print_json, print_table
from griffinlm.errors import GriffinError

if TYPE_CHECKING:
    from griffinlm.evaluate.harness import TaskFigure
    from griffinlm.evaluate.recall import RecallFigure

MEASURES = {
    "text": ("limit",),
    "tasks": ("data", "limit", "batch"),
    "recall": ("lengths", "examples", "seed", "batch"),
}
"""What can be measured, by the option that asks for it, and the options that go with each."""
NEEDED = {"tasks": "data", "recall": "lengths"}


class EvaluateError(GriffinError):
    """Options that do not go together, or values that are no list."""


def evaluate(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="The same as --model; eyas if neither is given.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="As in `griffin generate`.")] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help='Bits per byte. .jsonl or .jsonl.xz: the "text" of each row is a document; .txt: the file is one.',
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", metavar="NAME,...", help="Tasks of lm-evaluation-harness, such as arc_easy,piqa."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Where the files of the tasks are: NAME.jsonl.xz.")
    ] = None,
    recall: Annotated[
        str | None,
        typer.Option(
            "--recall",
            metavar="NAME,...",
            help="phonebook, needle; of models trained on it, selective_copying, induction_heads.",
        ),
    ] = None,
    lengths: Annotated[
        str | None, typer.Option("--lengths", metavar="N,...", help="Tokens of the prompts of --recall.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="Only the first N documents, of each task.", min=1)
    ] = None,
    examples: Annotated[
        int | None, typer.Option("--examples", metavar="N", help="Prompts of each length; 32 if not given.", min=1)
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Same seed, same prompts; 0 if not given.", min=0)
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", metavar="N", help="Texts read side by side; 8 if not given.", min=1)
    ] = None,
    weights: o.Weights = None,
    engine: o.Engine = "auto",
    device: o.Device = "cpu",
    adapter: o.Adapter = None,
    threads: o.Threads = None,
    as_json: o.AsJson = False,
) -> None:
    """Measure a model on a text, on tasks, or on synthetic recall.

    Every text begins with the begin token; neither that nor an end token counts.
    """
    given = context.params
    measure = _measure(given)
    if name is not None and model is not None:
        raise EvaluateError(f"the model is given twice, as {name} and --model {model}; give one of them")
    given = {**given, "model": name or model or "eyas"}
    {"text": _text, "tasks": _tasks, "recall": _recall}[measure](given)


def _measure(given: dict[str, Any]) -> str:
    """The one thing to measure; refuses options that go with another."""
    asked = [measure for measure in MEASURES if given[measure] is not None]
    if len(asked) != 1:
        found = " and ".join(f"--{measure}" for measure in asked) or "nothing"
        raise EvaluateError(f"{found} is asked for; give one of --text, --tasks and --recall")
    (measure,) = asked
    every = {option for options in MEASURES.values() for option in options}
    for option in sorted(every - set(MEASURES[measure])):
        if given[option] is not None:
            raise EvaluateError(f"--{option} is given, which --{measure} does not have")
    needed = NEEDED.get(measure)
    if needed is not None and given[needed] is None:
        raise EvaluateError(f"--{measure} is given without --{needed}")
    return measure


def _text(given: dict[str, Any]) -> None:
    from griffinlm.evaluate.documents import read_documents

    limit = given["limit"]
    documents = list(islice(read_documents(given["text"]), None if limit is None else min(limit, sys.maxsize)))
    model = o.load_model(given)

    from griffinlm.evaluate.bits_per_byte import evaluate_documents

    found = evaluate_documents(model, documents, len(documents))
    if given["as_json"]:
        print_json(
            {
                "bits_per_byte": found.bits_per_byte,
                "bytes": found.num_bytes,
                "tokens": found.num_tokens,
                "documents": found.num_documents,
            }
        )
    else:
        print(
            f"{found.bits_per_byte:.4f} bits per byte  "
            f"({found.num_bytes:,} bytes, {found.num_tokens:,} tokens, {found.num_documents:,} documents)"
        )


def _tasks(given: dict[str, Any]) -> None:
    from griffinlm.evaluate.tasks import require_task

    names = _names("tasks", given["tasks"])
    for name in names:
        require_task(name)
    if importlib.util.find_spec("lm_eval") is None:
        raise EvaluateError("lm-evaluation-harness is not installed", hint="pip install 'griffinlm[evaluate]'")
    from griffinlm.evaluate.harness import evaluate_tasks

    figures = evaluate_tasks(o.load_model(given), names, given["data"], given["limit"], **_batch(given))
    if given["as_json"]:
        print_json({"tasks": [dataclasses.asdict(figure) for figure in figures]})
    else:
        header = ["task", "metric", "value", "standard error", "documents"]
        print_table(header, [_task_row(figure) for figure in figures])


def _task_row(figure: "TaskFigure") -> list[str]:
    error = "" if figure.standard_error is None else f"{figure.standard_error:.4f}"
    return [figure.task, figure.metric, f"{figure.value:.4f}", error, f"{figure.documents:,}"]


def _recall(given: dict[str, Any]) -> None:
    from griffinlm.evaluate.recall import DEFAULT_NUM_EXAMPLES, evaluate_recall, require_recall_task

    names = _names("recall", given["recall"])
    for name in names:
        require_recall_task(name)
    lengths = o.whole_numbers("lengths", given["lengths"], "256,512")
    num_examples = given["examples"] or DEFAULT_NUM_EXAMPLES
    model = o.load_model(given)
    figures = evaluate_recall(model, names, lengths, num_examples, given["seed"] or 0, **_batch(given))
    attention = model.config.attention
    window_tokens = None if attention is None else attention.window_tokens
    if given["as_json"]:
        print_json({"window_tokens": window_tokens, "recall": [dataclasses.asdict(figure) for figure in figures]})
    else:
        header = ["task", "length", "accuracy", "standard error", "token accuracy", "examples"]
        print_table(header, [_recall_row(figure) for figure in figures])


def _recall_row(figure: "RecallFigure") -> list[str]:
    shares = (figure.accuracy, figure.standard_error, figure.token_accuracy)
    return [figure.task, f"{figure.length:,}", *(f"{share:.4f}" for share in shares), f"{figure.examples:,}"]


def _batch(given: dict[str, Any]) -> dict[str, int]:
    return {} if given["batch"] is None else {"batch_rows": given["batch"]}


def _names(option: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if len(set(names)) < len(names):
        raise EvaluateError(f"--{option} is {text[:60]!r}; it names something twice")
    return names
