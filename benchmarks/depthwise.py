"""What is depth-wise batching worth, where the model itself decides which tokens leave early?

Greedy answers to many prompts by the three ways of batching, with the same slots, weights and exits. A token leaves
where the head is sure enough, by thresholds found on the first half of the text, and what it owes to deeper loops is
caught up exactly. If a step, one loop of all rows, costs the same whatever the rows, the gain over sequence-level
batching is that in steps, which is its bound. Quality is the share of tokens that are those of full depth, up to the
first difference of each answer.

    python benchmarks/depthwise.py MODEL TEXT --rows 8 32 --qualities 0.9 0.95 --out benchmarks/results
"""

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from self_speculation import PROMPT_TOKENS, ids_of, pieces_of

import griffinlm
from griffinlm.errors import GriffinError
from griffinlm.evaluate.record import header, write
from griffinlm.generation.depth import Batching, DepthScheduler
from griffinlm.generation.request import Request
from griffinlm.model.engine import TorchEngine
from griffinlm.model.exits import ConfidenceRule, recorded_confidence
from griffinlm.model.loops import TorchLoopExecutor
from griffinlm.recursive.exits import calibrated_thresholds

CALIBRATION_ROWS, CALIBRATION_TOKENS = 8, 256
"""Of the text's first half, from which the thresholds are found."""
NO_PROBABILITY = 2.0
"""Stands in a record for an infinite threshold, which JSON has no word for."""


class Greedy:
    """Takes the best token."""

    is_complete = False

    def choose(self, logits: np.ndarray) -> int:
        return int(logits.argmax())


def run(
    engine: TorchEngine,
    prompts: Sequence[list[int]],
    num_rows: int,
    num_tokens: int,
    thresholds: Sequence[float] | None,
    way: Batching,
) -> dict[str, Any]:
    """All answers, the seconds that they took, and the rows in each loop at every step; without thresholds no exits."""
    capacity = PROMPT_TOKENS + num_tokens if engine.config.needs_capacity else None
    rule = None if thresholds is None else ConfidenceRule(engine.model, thresholds)
    executor = TorchLoopExecutor(engine, num_rows, capacity, rule)
    scheduler = DepthScheduler(executor, lambda ids: np.asarray([ids], np.int64), way)
    # Answers of different lengths, so that slots become free at different times.
    lengths = [num_tokens // 2 + number * num_tokens // (2 * len(prompts)) for number in range(len(prompts))]
    requests = [
        Request(prompt, Greedy(), length, frozenset(), wants_state=False)
        for prompt, length in zip(prompts, lengths, strict=True)
    ]
    said: dict[Request, list[int]] = {request: [] for request in requests}
    rows, start = [], time.perf_counter()
    for request in requests:
        scheduler.submit(request)
    while scheduler.busy:
        for event in scheduler.step():
            if event.error is not None:
                raise event.error
            said[event.request].append(event.token if event.token is not None else -1)
        rows.append(scheduler.num_rows_by_loop)
    return {"seconds": time.perf_counter() - start, "answers": list(said.values()), "rows": rows}


def num_equal(found: Sequence[int], expected: Sequence[int]) -> int:
    """Tokens up to the first that differs."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(found, expected, strict=True)))


def compared(
    engine: TorchEngine, prompts: Sequence[list[int]], num_rows: int, num_tokens: int, thresholds: Sequence[float]
) -> dict[str, Any]:
    """Speed by way of batching beside its bound, and what the exits cost in quality."""
    full = run(engine, prompts, num_rows, num_tokens, None, "depth")["answers"]
    found = {way: run(engine, prompts, num_rows, num_tokens, thresholds, way) for way in get_args(Batching)}
    total = sum(map(len, full))
    loops_each = sum(map(sum, found["depth"]["rows"])) / total
    speeds = {way: total / one["seconds"] for way, one in found.items()}
    steps = {way: len(one["rows"]) for way, one in found.items()}
    equal = sum(num_equal(one, other) for one, other in zip(found["depth"]["answers"], full, strict=True))
    return {
        "rows": num_rows,
        "thresholds": [min(threshold, NO_PROBABILITY) for threshold in thresholds],
        "loops": engine.config.recursion.num_loops if engine.config.recursion is not None else 1,
        "loops_a_token": loops_each,
        "tokens": total,
        "equal_tokens": equal / total,
        "tokens_per_second": speeds,
        "steps": steps,
        "gain": speeds["depth"] / speeds["sequence"],
        "largest_gain": steps["sequence"] / steps["depth"],
        "rows_by_loop": found["depth"]["rows"],
    }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", help="a recursive model")
    parser.add_argument("text", type=Path, help="a file whose pieces are prompts")
    parser.add_argument("--weights", help="as in griffinlm.load")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 32])
    parser.add_argument(
        "--qualities", type=float, nargs="+", default=[0.9, 0.95], help="as calibrated_thresholds has it"
    )
    parser.add_argument("--tokens", type=int, default=64, help="most tokens of an answer; half of them is the least")
    parser.add_argument("--prompts-each", type=int, default=3, help="prompts for every row")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    chosen = {"weights": given.weights, "device": given.device, "threads": given.threads}
    model = griffinlm.load(given.model, engine="torch", **chosen)
    assert isinstance(model.engine, TorchEngine)
    report: dict[str, Any] = {**header("benchmarks/depthwise.py", arguments), **chosen, "runs": []}
    ids = ids_of(model, given.text)
    middle = len(ids) // 2
    held_out = np.asarray(pieces_of(ids[:middle], CALIBRATION_ROWS, CALIBRATION_TOKENS), np.int64)
    recorded = recorded_confidence(model.engine.model, torch.from_numpy(held_out).to(model.engine.device))
    confidence, is_right = (values.cpu().numpy() for values in recorded)
    for num_rows, quality in itertools.product(given.rows, given.qualities):
        prompts = pieces_of(ids[middle:], num_rows * given.prompts_each, PROMPT_TOKENS)
        thresholds = calibrated_thresholds(confidence, is_right, quality)
        found = {"quality": quality, **compared(model.engine, prompts, num_rows, given.tokens, thresholds)}
        report["runs"].append(found)
        speeds = ", ".join(f"{way} {speed:.0f}" for way, speed in found["tokens_per_second"].items())
        print(
            f"{num_rows} rows, quality {quality}: {found['loops_a_token']:.2f} of {found['loops']} loops a token, "
            f"{found['equal_tokens']:.0%} of tokens equal; tokens/s: {speeds}; "
            f"{found['gain']:.2f} times sequence-level (at most {found['largest_gain']:.2f})"
        )
    if given.out is not None:
        print(write(report, "depthwise", given.out))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except GriffinError as error:
        sys.exit(f"error: {error}")
