"""griffin bench: time, traffic and memory of reading and writing tokens."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from griffinlm.cli import options as o
from griffinlm.cli.output import print_json, print_table
from griffinlm.errors import GriffinError

if TYPE_CHECKING:
    from griffinlm.checkpoint import Checkpoint
    from griffinlm.evaluate.speed import Figure, Subject


class BenchError(GriffinError):
    """Options that do not go together, or positions that are no numbers."""


def bench(
    measure: Annotated[
        str,
        typer.Argument(
            metavar="decode|prefill|batch",
            help="Writing tokens; reading a prompt; writing tokens of eight conversations side by side.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="As in `griffin generate`; eyas if neither is given."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", metavar="NAME", help="A preset with random weights, which are kept in the cache."),
    ] = None,
    engine: Annotated[str, typer.Option("--engine", metavar="onnx|torch", help="What computes.")] = "onnx",
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="TYPE",
            help="float32, int8, int4 or a format such as int4-block32 (onnx), bfloat16 (torch). If not given, what "
            "the model's files hold; of a preset int4 (onnx) or float32 (torch).",
        ),
    ] = None,
    window_dtype: o.WindowType = None,
    positions: Annotated[
        str,
        typer.Option(
            "--positions", metavar="N,N,...", help="Tokens already read; reached by setting the state, not by reading."
        ),
    ] = "0",
    rows: Annotated[
        int | None, typer.Option("--rows", metavar="N", help="Conversations side by side; 1, for batch 8.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", metavar="N", help="Tokens of a row to time; 64, for prefill 512.")
    ] = None,
    threads: o.Threads = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line, one for each position.")
    ] = False,
) -> None:
    """Measure how fast a model reads and writes.

    It runs in the scheduler, sampler and executor of `griffin generate`. Times are medians over steps, the first three
    left out. Beside them stand the bytes that a step must read, their share of the read bandwidth measured before and
    after, and the largest resident set of the process so far.
    """
    from griffinlm.evaluate.speed import DEFAULT_ROWS, DEFAULT_TOKENS, Workload, measure_speed

    workload = Workload(
        measure,
        tuple(o.whole_numbers("positions", positions, "0,8192")),
        DEFAULT_ROWS.get(measure, 1) if rows is None else rows,
        DEFAULT_TOKENS.get(measure, 1) if tokens is None else tokens,
    )
    subject = _subject(model, preset, engine, weights, window_dtype, threads)
    figures = []
    for figure in measure_speed(subject, workload):
        if as_json:
            print_json(dataclasses.asdict(figure))
        figures.append(figure)
    if not as_json:
        _print_figures(figures)


def _subject(
    model: str | None,
    preset: str | None,
    engine: str,
    weights: str | None,
    window_dtype: str | None,
    threads: int | None,
) -> "Subject":
    from griffinlm.edge.threads import num_threads
    from griffinlm.evaluate.benchmark_weights import check_weights
    from griffinlm.evaluate.speed import Subject
    from griffinlm.loading import check_threads, load

    check_weights(engine, weights)
    check_threads(threads)
    checkpoint, weights = _checkpoint(model, preset, engine, weights)
    threads = num_threads(threads)
    loaded = load(checkpoint.path, engine=engine, weights=weights, window_dtype=window_dtype, threads=threads)
    return Subject(preset or model or "eyas", engine, loaded.engine, checkpoint, threads)


def _checkpoint(
    model: str | None, preset: str | None, engine: str, weights: str | None
) -> tuple["Checkpoint", str | None]:
    """What is loaded, and as which weights."""
    from griffinlm.evaluate.benchmark_weights import model_checkpoint, random_checkpoint

    if preset is None:
        return model_checkpoint(model or "eyas", engine, weights), weights
    if model is not None:
        raise BenchError(f"there are a model ({model}) and a preset ({preset}); give one of them")
    weights = weights or {"onnx": "int4", "torch": "float32"}[engine]
    return random_checkpoint(preset, engine, weights), weights


def _print_figures(figures: "list[Figure]") -> None:
    first = figures[0]
    described: list[tuple[str, str]] = [
        ("model", f"{first.model}, {first.weights}, from {first.weight_file_bytes / 1e6:,.1f} MB of files"),
        ("engine", f"{first.engine}, {first.threads} threads, {first.window_dtype} window"),
        ("measure", f"{first.command}, {first.tokens} tokens of each row"),
        ("rows", str(first.rows)),
    ]
    print_table(None, described)
    print()
    header = ["position", "ms a token", "tokens/s", "MB a token", "of bandwidth", "GB/s", "peak MB", "state MB"]
    print_table(header, [_row(figure) for figure in figures])


def _row(figure: "Figure") -> list[Any]:
    return [
        f"{figure.position:,}",
        f"{figure.ms_per_token:,.4g}",
        f"{figure.tokens_per_second:,.4g}",
        f"{figure.bytes_per_token / 1e6:,.4g}",
        f"{figure.bandwidth_share:.1%}",
        f"{figure.bandwidth_bytes_per_second / 1e9:.1f}",
        f"{figure.peak_rss_bytes / 1e6:,.0f}",
        f"{figure.state_bytes / 1e6:,.4g}",
    ]
