"""Prints tables of what the measurements have found, and of what they were to show, from the lines that they printed.

PYTHONPATH=src:benchmarks python -m gpu.summary LOG...
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gpu.targets import targets
from gpu.throughput import NEW_TOKENS, PROMPT_TOKENS, SMOKE_NEW_TOKENS, SMOKE_PROMPT_TOKENS, summarise

SHOWN = {
    "scan": (
        "program",
        "shape",
        "forward_seconds",
        "forward_share_of_copy",
        "backward_seconds",
        "backward_share_of_copy",
    ),
    "decode": ("model", "program", "rows", "seconds_per_step", "tokens_per_second", "share_of_bound"),
    "throughput": ("model", "program", "new_tokens", "tokens_per_second", "rows", "times_gemma"),
    "prefill": ("model", "program", "rows", "tokens", "tokens_per_second", "operations_per_second"),
    "training": ("size", "model", "tokens", "seconds_per_step", "tokens_per_second", "times_as_fast_as_transformer"),
    "loss_curve": ("program", "last_loss", "largest_distance"),
}
"""Columns of each module's table."""
TARGETS = ("target", "least", "most", "found", "is_met")


def read_rows(log: Path) -> list[dict[str, Any]]:
    """The rows among the lines of a log."""
    rows = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            rows.append(found)
    return rows


def compared(rows: list[dict[str, Any]], base: str, alike: tuple[str, ...], name: str) -> list[dict[str, Any]]:
    """The rows, each with how many times as many tokens a second it has as its base.

    Args:
        base: how the name of the base's model begins.
        alike: what a row and its base have in common.
        name: of the new figure.
    """

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(one) for one in alike)

    speeds = {
        key(row): row["tokens_per_second"]
        for row in rows
        if "tokens_per_second" in row and row["model"].startswith(base)
    }
    return [
        {**row, name: row["tokens_per_second"] / speeds[key(row)]}
        if "tokens_per_second" in row and key(row) in speeds
        else row
        for row in rows
    ]


def table(rows: Iterable[Mapping[str, Any]], columns: tuple[str, ...]) -> str:
    """Columns side by side; where a row was not measured, why."""
    lines = [list(columns)]
    for row in rows:
        lines.append([_text(row.get(column)) for column in columns])
        if reason := row.get("failed") or row.get("not_measured"):
            lines[-1].append(f"{'failed' if 'failed' in row else 'not measured'}: {reason}")
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    padded = (
        [*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), *line[len(widths) :]]
        for line in lines
    )
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def shown(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a module's table."""
    if name == "training":
        return compared(rows, "mqa", ("size", "tokens"), "times_as_fast_as_transformer")
    if name == "throughput":
        tiny = any(row.get("position", PROMPT_TOKENS) < PROMPT_TOKENS for row in rows)
        sizes = (SMOKE_PROMPT_TOKENS, SMOKE_NEW_TOKENS) if tiny else (PROMPT_TOKENS, NEW_TOKENS)
        found = compared(summarise(rows, *sizes), "gemma", ("program", "new_tokens"), "times_gemma")
        return [*found, *(row for row in rows if row.keys() & {"failed", "not_measured"})]
    # A check that holds has no figure to show.
    return [row for row in rows if row.get("program") != "check" or "failed" in row]


def main() -> int:
    tables = {path.stem: shown(path.stem, read_rows(path)) for path in map(Path, sys.argv[1:])}
    for name, rows in tables.items():
        print(f"{name}\n{table(rows, SHOWN[name])}\n")
    print(f"targets\n{table(targets(tables), TARGETS)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
