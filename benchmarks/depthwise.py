"""What is depth-wise batching worth, where the model itself decides which tokens leave early?

Greedy answers to many prompts by the three ways of batching, with the same slots, weights and exits, in turn so that a
drifting machine shows in all. A token leaves where the small head in the model's exits.safetensors is sure enough, or,
where it has none, the head; the thresholds are found on the first half of the text. In a model trained to skip the
deeper loops do without the tokens that left; in another they catch up exactly. If a step, one loop of all rows, costs
the same whatever the rows, the gain over sequence-level batching is that in steps, which is its bound. Prompts are read
alike in all and timed apart. Quality is the share of tokens that are the best ones of full depth behind what was
written before them.

    python benchmarks/depthwise.py MODEL TEXT --weights bfloat16 --rows 8 32 --out benchmarks/results
"""

import argparse
import dataclasses
import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from self_speculation import PROMPT_TOKENS, ids_of, pieces_of

import griffinlm
from griffinlm.checkpoint.exits import Exits, read_exits
from griffinlm.errors import GriffinError
from griffinlm.evaluate.record import header, write
from griffinlm.generation.depth import Batching, DepthScheduler
from griffinlm.generation.request import Request
from griffinlm.loading import find_model
from griffinlm.model.engine import TorchEngine
from griffinlm.model.exits import ConfidenceRule, ProbeRule, recorded_exits
from griffinlm.model.loops import ExitRule
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


def choose_best(_: Sequence[Any], logits: np.ndarray) -> list[int | Exception]:
    """The best token of every row."""
    return logits.argmax(axis=1).tolist()


class Timed:
    """An executor whose reading of prompts is timed."""

    def __init__(self, executor: Any) -> None:
        self._executor, self.reading_seconds = executor, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def prefill(self, *given: Any) -> Any:
        start = time.perf_counter()
        found = self._executor.prefill(*given)
        self.reading_seconds += time.perf_counter() - start
        return found


class Rules:
    """The rules by which tokens may leave, for any quality, of what was recorded on held-out text."""

    def __init__(self, engine: TorchEngine, exits: Exits | None, held_out: Sequence[list[int]]) -> None:
        self._model, self._exits = engine.model, exits
        found = recorded_exits(engine.model, torch.tensor(held_out, device=engine.device))
        self._is_right, self._confidence = found.is_right.cpu().numpy(), found.confidence.float().cpu().numpy()
        if exits is not None:
            self._confidence = exits.confidence(found.normed.float().cpu().numpy())

    def __call__(self, quality: float) -> tuple[ExitRule, list[float]]:
        """The rule and its thresholds."""
        thresholds = calibrated_thresholds(self._confidence, self._is_right, quality)
        if self._exits is None:
            return ConfidenceRule(self._model, thresholds), thresholds
        exits = dataclasses.replace(self._exits, thresholds=tuple(thresholds), quality=quality)
        return ProbeRule(self._model, exits), thresholds


def run(
    engine: TorchEngine,
    prompts: Sequence[list[int]],
    num_rows: int,
    num_tokens: int,
    rule: ExitRule,
    way: Batching,
) -> dict[str, Any]:
    """All answers, the seconds that writing them and reading the prompts took, and the rows in each loop by step."""
    capacity = PROMPT_TOKENS + num_tokens if engine.config.needs_capacity else None
    executor = Timed(engine.loop_executor(num_rows, capacity, rule))
    scheduler = DepthScheduler(executor, lambda ids: np.asarray([ids], np.int64), way, choose_best)
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
    reading = executor.reading_seconds
    seconds = time.perf_counter() - start - reading
    return {"seconds": seconds, "reading_seconds": reading, "answers": list(said.values()), "rows": rows}


def share_of_full_depth(engine: TorchEngine, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> float:
    """Of all tokens of the answers those that full depth would have written behind what stands before them."""
    num_equal = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        executor = engine.executor(1, len(prompt) + len(answer) if engine.config.needs_capacity else None)
        logits = executor.prefill([0], np.asarray([[*prompt, *answer[:-1]]], np.int64), None, "all")
        assert logits is not None
        num_equal += int((logits[0, len(prompt) - 1 :].argmax(axis=1) == answer).sum())
    return num_equal / sum(map(len, answers))


def compared(
    engine: TorchEngine,
    prompts: Sequence[list[int]],
    num_rows: int,
    num_tokens: int,
    rule: ExitRule,
    num_repeats: int,
) -> dict[str, Any]:
    """Speed by way of batching beside its bound, and what the exits cost in quality."""
    found: dict[Batching, list[dict[str, Any]]] = {way: [] for way in get_args(Batching)}
    for _ in range(num_repeats):
        for way, ways in found.items():
            ways.append(run(engine, prompts, num_rows, num_tokens, rule, way))
    depth = found["depth"][0]
    total = sum(map(len, depth["answers"]))
    speeds = {way: total / statistics.median(one["seconds"] for one in ways) for way, ways in found.items()}
    steps = {way: len(ways[0]["rows"]) for way, ways in found.items()}
    gain, largest = speeds["depth"] / speeds["sequence"], steps["sequence"] / steps["depth"]
    config = engine.config
    assert config.recursion is not None
    return {
        "rows": num_rows,
        "skips": config.skips,
        "loops": config.recursion.num_loops,
        "loops_a_token": sum(map(sum, depth["rows"])) / total,
        "tokens": total,
        "equal_tokens": share_of_full_depth(engine, prompts, depth["answers"]),
        "tokens_per_second": speeds,
        "reading_seconds": statistics.median(one["reading_seconds"] for one in found["depth"]),
        "steps": steps,
        "gain": gain,
        "largest_gain": largest,
        "share_of_largest_gain": gain / largest,
        "rows_by_loop": depth["rows"],
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
        "--qualities", type=float, nargs="+", default=[0.8, 0.9, 0.95], help="as calibrated_thresholds has it"
    )
    parser.add_argument("--tokens", type=int, default=64, help="most tokens of an answer; half of them is the least")
    parser.add_argument("--prompts-each", type=int, default=3, help="prompts for every row")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way, of which the median counts")
    parser.add_argument(
        "--catch-up", action="store_true", help="let the deeper loops catch up, though the model was trained to skip"
    )
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    chosen = {"weights": given.weights, "device": given.device, "threads": given.threads}
    model = griffinlm.load(given.model, engine="torch", **chosen)
    assert isinstance(model.engine, TorchEngine)
    if given.catch_up and model.config.recursion is not None:
        recursion = dataclasses.replace(model.config.recursion, skips=False)
        model.engine.config = model.engine.model.config = dataclasses.replace(model.config, recursion=recursion)
    report: dict[str, Any] = {**header("benchmarks/depthwise.py", arguments), **chosen, "runs": []}
    ids = ids_of(model, given.text)
    middle = len(ids) // 2
    held_out = pieces_of(ids[:middle], CALIBRATION_ROWS, CALIBRATION_TOKENS)
    exits = read_exits(find_model(given.model), model.config)
    rules, report["rule"] = Rules(model.engine, exits, held_out), "confidence" if exits is None else "probe"
    for num_rows, quality in itertools.product(given.rows, given.qualities):
        prompts = pieces_of(ids[middle:], num_rows * given.prompts_each, PROMPT_TOKENS)
        rule, thresholds = rules(quality)
        found = {
            "quality": quality,
            "thresholds": [min(threshold, NO_PROBABILITY) for threshold in thresholds],
            **compared(model.engine, prompts, num_rows, given.tokens, rule, given.repeats),
        }
        report["runs"].append(found)
        speeds = ", ".join(f"{way} {speed:.0f}" for way, speed in found["tokens_per_second"].items())
        print(
            f"{num_rows} rows, quality {quality}: {found['loops_a_token']:.2f} of {found['loops']} loops a token, "
            f"{found['equal_tokens']:.0%} of tokens those of full depth; tokens/s: {speeds}; "
            f"{found['gain']:.2f} times sequence-level, {found['share_of_largest_gain']:.0%} of at most "
            f"{found['largest_gain']:.2f}",
            flush=True,
        )
    if given.out is not None:
        print(write(report, "depthwise", given.out))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except GriffinError as error:
        sys.exit(f"error: {error}")
