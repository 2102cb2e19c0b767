"""Prints tables of what the measurements have found, from the lines that they printed.

PYTHONPATH=src:benchmarks python -m gpu.summary LOG...
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

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
    "decode": ("model", "rows", "seconds_per_step", "tokens_per_second", "share_of_bound"),
    "throughput": ("model", "program", "new_tokens", "tokens_per_second", "rows"),
    "prefill": ("model", "program", "rows", "tokens", "tokens_per_second", "operations_per_second"),
    "training": ("size", "model", "tokens", "seconds_per_step", "tokens_per_second", "times_as_fast_as_transformer"),
    "loss_curve": ("program", "last_loss", "largest_distance"),
}
"""Columns of each module's table."""


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


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Training rows, each with how many times as fast it is as the transformer of its size and length."""
    transformers = {
        (row["size"], row["tokens"]): row["seconds_per_step"]
        for row in rows
        if row["model"].startswith("mqa") and "seconds_per_step" in row
    }
    found = []
    for row in rows:
        theirs = transformers.get((row["size"], row["tokens"]))
        is_known = theirs is not None and "seconds_per_step" in row
        found.append({**row, "times_as_fast_as_transformer": theirs / row["seconds_per_step"]} if is_known else row)
    return found


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
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> int:
    for path in map(Path, sys.argv[1:]):
        rows, name = read_rows(path), path.stem
        if name == "training":
            rows = compared(rows)
        if name == "throughput":
            tiny = any(row.get("position", PROMPT_TOKENS) < PROMPT_TOKENS for row in rows)
            sizes = (SMOKE_PROMPT_TOKENS, SMOKE_NEW_TOKENS) if tiny else (PROMPT_TOKENS, NEW_TOKENS)
            rows = [*summarise(rows, *sizes), *(row for row in rows if row.keys() & {"failed", "not_measured"})]
        # A check that holds has no figure to show.
        rows = [row for row in rows if row.get("program") != "check" or "failed" in row]
        print(f"{name}\n{table(rows, SHOWN[name])}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
