"""The largest throughput of sampling from a prompt of 2,048 tokens, by the number of new tokens: the paper's figure 1a.

RecurrentGemma-2B shapes beside Gemma-2B shapes in bfloat16, every row drawn at temperature 1. Not every token is
generated: steps are timed at set positions for several numbers of rows, the time between two positions is taken to lie
on a line, and the times of all steps are added up. A number of rows counts where all rows fit in memory at full length.
Gemma's attention is the faster of our kernel and torch's own at each position. transformers' classes run uncompiled.
"""

import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from gpu.decode import ROOM, step_seconds
from gpu.measuring import Bench
from gpu.models import config_of, random_model, state_bytes
from gpu.peers import Generation, random_peer
from griffinlm.config import ModelConfig

MODELS = ("recurrentgemma-2b", "gemma-2b")
PROMPT_TOKENS = 2048
NEW_TOKENS = (128, 512, 2048, 8192, 32_768)
SMOKE_PROMPT_TOKENS, SMOKE_NEW_TOKENS = 8, (4, 16)
ROWS = (1024, 256, 64, 2048, 512, 128, 4096)
"""The first ones first, where time runs out."""
PEER_ROWS = (64, 256, 1024)
STEP_BYTES_A_ROW = 32 * 256_000
"""Logits, and what is computed of them while a row's token is drawn, in a vocabulary of 256,000."""

Times = dict[int, float]
"""Seconds of a step by position."""


def answer_seconds(times: Times, first: int, num_tokens: int) -> float:
    """Seconds of the steps at positions first..first + num_tokens - 1, each step's on the line between two measured.

    Raises:
        ValueError: the positions measured do not reach from the first to the last.
    """
    last = first + num_tokens
    total, reached = 0.0, first
    for (left, left_seconds), (right, right_seconds) in pairwise(sorted(times.items())):
        start, stop = max(left, first), min(right, last)
        if start < stop:
            slope = (right_seconds - left_seconds) / (right - left)
            middle = left_seconds + slope * ((start + stop) / 2 - left)
            total, reached = total + middle * (stop - start), stop
    if reached < last or min(times) > first:
        raise ValueError(f"steps are timed at {sorted(times)}; the answer is at {first}..{last}")
    return total


def summarise(rows: Sequence[dict[str, Any]], prompt_tokens: int, new_tokens: Sequence[int]) -> list[dict[str, Any]]:
    """The largest throughput of each model and program at each length, and the number of rows that gives it."""
    times: dict[tuple[str, str], dict[int, Times]] = {}
    for row in rows:
        if "seconds_per_step" in row:
            of_rows = times.setdefault((row["model"], row["program"]), {}).setdefault(row["rows"], {})
            of_rows[row["position"]] = min(row["seconds_per_step"], of_rows.get(row["position"], float("inf")))
    found = []
    for (model, program), by_rows in times.items():
        for number in new_tokens:
            figures = []
            for num_rows, of_rows in by_rows.items():
                if min(of_rows) <= prompt_tokens and max(of_rows) >= prompt_tokens + number:
                    seconds = answer_seconds(of_rows, prompt_tokens, number)
                    figures.append((num_rows * number / seconds, num_rows))
            if figures:
                best, num_rows = max(figures)
                what = {"model": model, "program": program, "new_tokens": number}
                found.append({**what, "tokens_per_second": best, "rows": num_rows})
    return found


def fits(bench: Bench, config: ModelConfig, rows: int, position: int) -> bool:
    """Whether so many rows can stand at a position, with what a step needs beside them."""
    element = 4 if bench.smoke else 2
    return rows * (state_bytes(config, position + ROOM, element) + STEP_BYTES_A_ROW) <= bench.free_bytes()


def measure_ours(bench: Bench, preset: str, rows: Sequence[int], positions: Sequence[int]) -> None:
    config = config_of(bench, preset)
    model = random_model(config, bench.device, bench.dtype)
    for num_rows in rows:
        for position in positions:
            if not fits(bench, config, num_rows, position):
                break
            for by_sdpa in (False, True) if config.needs_capacity else (False,):
                what = {"model": preset, "program": "griffinlm", "rows": num_rows, "position": position}
                what["attention"] = "torch" if by_sdpa else "griffinlm"
                bench.measure(
                    what,
                    lambda w=what, s=by_sdpa: {
                        "seconds_per_step": step_seconds(bench, model, w["rows"], w["position"], s)
                    },
                    is_peer=by_sdpa,
                )


def measure_transformers(bench: Bench, preset: str, rows: Sequence[int], positions: Sequence[int]) -> None:
    config, made = config_of(bench, preset), []

    def run(num_rows: int, position: int) -> dict[str, Any]:
        made[:] = made or [random_peer(bench, preset)]
        generation = Generation(made[0], num_rows, position)
        return {"seconds_per_step": bench.seconds(generation.step, repeats=3, warm_up=1)}

    for num_rows in rows:
        for position in positions:
            # A growing cache is copied at every step.
            if not fits(bench, config, 2 * num_rows, position):
                break
            what = {"model": preset, "program": "transformers", "rows": num_rows, "position": position}
            bench.measure(what, lambda w=what: run(w["rows"], w["position"]), is_peer=True)


def main() -> int:
    bench = Bench("throughput", __doc__)
    prompt, lengths, rows, peer_rows = PROMPT_TOKENS, NEW_TOKENS, ROWS, PEER_ROWS
    if bench.smoke:
        prompt, lengths, rows, peer_rows = SMOKE_PROMPT_TOKENS, SMOKE_NEW_TOKENS, (2,), (2,)
    # The first of the lengths lies on a line as well as any.
    positions = (prompt, *(prompt + number for number in lengths[1:]))
    # A window is full after the prompt, so the ends are enough to see that nothing changes.
    ends = (positions[0], positions[-1])
    bench.facts |= {"prompt_tokens": prompt, "is_integrated_from_timed_steps": True, "summary": []}
    for measure, numbers in ((measure_ours, rows), (measure_transformers, peer_rows)):
        for preset in MODELS:
            measure(bench, preset, numbers, ends if preset == MODELS[0] else positions)
            bench.facts["summary"] = summarise(bench.rows, prompt, lengths)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
