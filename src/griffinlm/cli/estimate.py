"""griffin estimate: memory, time and cost of a training run."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from griffinlm.cli.info import recursion_facts, recursion_row
from griffinlm.cli.options import AsJson
from griffinlm.cli.output import print_json, print_table
from griffinlm.errors import GriffinError

if TYPE_CHECKING:
    from griffinlm.cost import TrainingMemory
    from griffinlm.train.estimate import Estimate, Plan

SECONDS_AN_HOUR = 3600.0
MEMORY_NAMES = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "AdamW's moments",
    "gathered": "gathered or cast",
    "activations": "activations",
    "logits": "logits of a chunk",
    "teacher": "teacher",
    "total": "total",
}


def estimate(
    run: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG|PRESET", help="A run as `griffin train pretrain` reads it, a preset, or a model directory."
        ),
    ],
    devices: Annotated[int, typer.Option("--devices", metavar="N", help="How many.", min=1, max=10**6)] = 1,
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="a100, h100, h200, b200, l40s, mi300x or rtx4090.")
    ] = "h200",
    tokens: Annotated[
        str | None, typer.Option("--tokens", metavar="N", help="Tokens to train on, such as 300B or 2T.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", metavar="N", help="Rows that a device reads at once.", min=1, max=10**6)
    ] = None,
    row_tokens: Annotated[
        int | None, typer.Option("--row-tokens", metavar="N", help="Tokens of a row.", min=1, max=10**8)
    ] = None,
    utilisation: Annotated[
        float, typer.Option("--utilisation", metavar="X", help="Assumed share of the device's peak that is reached.")
    ] = 0.4,
    price: Annotated[
        float | None, typer.Option("--price", metavar="X", help="Price of a device for an hour.", min=0.0, max=1e9)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell the memory, time and cost of a training run.

    Operations are counted from the configuration: attention by its window, layers that loop in every loop, the head
    behind every exit, and a teacher's reading. Memory is that of one device, weights, gradients and optimizer divided
    among all, with activations kept and with gradient checkpointing. What a prefix adds is not counted.
    """
    from griffinlm.train.estimate import DEVICES, parse_count, read_plan
    from griffinlm.train.estimate import estimate as compute

    given = {"tokens": None if tokens is None else parse_count(tokens), "rows": batch, "row_tokens": row_tokens}
    plan = dataclasses.replace(read_plan(run, devices), **{k: v for k, v in given.items() if v is not None})
    if price is not None and plan.tokens is None:
        raise GriffinError(f"--price is {price:g}, but nothing says how many tokens there are", hint="give --tokens")
    found = compute(plan, device, devices, utilisation)
    facts: dict[str, Any] = {
        "run": run,
        "parameters": plan.model.num_parameters,
        "recursion": recursion_facts(plan.model),
        "exits": plan.losses.num_exits,
        "teacher_parameters": None if plan.losses.teacher is None else plan.losses.teacher.num_parameters,
        "device": device,
        "devices": devices,
        "device_memory_bytes": DEVICES[device].memory_bytes,
        "device_flops": DEVICES[device].bfloat16_flops,
        "utilisation": utilisation,
        "row_tokens": plan.row_tokens,
        "rows_per_device": plan.rows,
        "tokens": plan.tokens,
        "flops_per_token": _flops_per_token(plan, found),
        "kept": _facts(found.kept, found.kept_seconds, devices, price),
        "recomputed": _facts(found.recomputed, found.recomputed_seconds, devices, price),
    }
    if as_json:
        print_json(facts)
        return
    print_table(None, _described(facts))
    print()
    print_table(["bytes of a device", "activations kept", "recomputed"], _memory_rows(facts))
    if plan.tokens is not None:
        print()
        print_table(["time and cost", "activations kept", "recomputed"], _time_rows(facts))


def _flops_per_token(plan: "Plan", found: "Estimate") -> dict[str, float]:
    from griffinlm.cost import training_operations

    rows = {
        **found.operations._asdict(),
        "reading": found.operations.total,
        "training_kept": training_operations(plan.model, plan.row_tokens, False, plan.losses),
        "training_recomputed": training_operations(plan.model, plan.row_tokens, True, plan.losses),
    }
    return {name: operations / plan.row_tokens for name, operations in rows.items()}


def _facts(memory: "TrainingMemory", seconds: float | None, devices: int, price: float | None) -> dict[str, Any]:
    hours = None if seconds is None else seconds / SECONDS_AN_HOUR
    return {
        "memory_bytes": {**memory._asdict(), "total": memory.total},
        "hours": hours,
        "device_hours": None if hours is None else hours * devices,
        "cost": None if hours is None or price is None else hours * devices * price,
    }


def _described(facts: dict[str, Any]) -> list[tuple[str, str]]:
    flops, teacher = facts["flops_per_token"], facts["teacher_parameters"]
    learning = [
        *([] if facts["recursion"] is None else [("recursion", recursion_row(facts["recursion"]))]),
        *([] if not facts["exits"] else [("exits", f"a loss behind {facts['exits']}, beside that of full depth")]),
        *([] if teacher is None else [("teacher", f"{teacher:,} parameters")]),
    ]
    return [
        ("run", facts["run"]),
        ("parameters", f"{facts['parameters']:,}"),
        *learning,
        ("devices", f"{facts['devices']:,} {facts['device']}, {facts['device_memory_bytes'] / 1e9:.0f} GB each"),
        ("rows", f"{facts['rows_per_device']:,} of {facts['row_tokens']:,} tokens a device"),
        (
            "reading",
            f"{flops['reading'] / 1e9:,.4g} GFLOP a token (blocks {flops['blocks'] / 1e9:,.4g}, "
            f"attention {flops['attention'] / 1e9:,.4g}, head {flops['head'] / 1e9:,.4g})",
        ),
        (
            "training",
            f"{flops['training_kept'] / 1e9:,.4g} GFLOP a token, {flops['training_recomputed'] / 1e9:,.4g} with "
            "gradient checkpointing",
        ),
        ("assumed", f"{facts['utilisation']:.0%} of {facts['device_flops'] / 1e12:,.0f} TFLOP/s in bfloat16"),
    ]


def _memory_rows(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = [
        (words, *(f"{facts[way]['memory_bytes'][name]:,}" for way in ("kept", "recomputed")))
        for name, words in MEMORY_NAMES.items()
    ]
    limit = facts["device_memory_bytes"]
    fits = ("yes" if facts[way]["memory_bytes"]["total"] <= limit else "no" for way in ("kept", "recomputed"))
    return [*rows, ("fits", *fits)]


def _time_rows(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    ways = [facts["kept"], facts["recomputed"]]
    rows = [
        ("tokens", *(f"{facts['tokens']:,}" for _ in ways)),
        ("days", *(f"{way['hours'] / 24:,.4g}" for way in ways)),
        ("device hours", *(f"{way['device_hours']:,.4g}" for way in ways)),
    ]
    if ways[0]["cost"] is not None:
        rows.append(("cost", *(f"{way['cost']:,.0f}" for way in ways)))
    return rows
