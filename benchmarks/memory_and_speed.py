"""Does a long answer cost more memory or time per token than a short one?

Writes one answer token by token, sampling included, with end tokens held back. Once attention's window is full nothing
may change any more: the resident set at the end is within 2% of the one when the window filled, and the last 1,000
tokens take as long as the first 1,000 past the window, within 10% (medians).

    python benchmarks/memory_and_speed.py --model eyas --tokens 20000 --json --out benchmarks/results
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import griffinlm
from griffinlm.errors import GriffinError
from griffinlm.evaluate.benchmark_weights import ENGINES, check_weights, model_checkpoint, weights_run
from griffinlm.evaluate.record import header, write
from griffinlm.executor import Engine, Executor, Extra
from griffinlm.generation.answering import Options

PROMPT = "Once upon a time"
MEMORY_TARGET, TIME_TARGET = 0.02, 0.10
NUM_TIMED_TOKENS = 1000
TOKENS_BETWEEN_MEMORY_SAMPLES = 100
TOKENS_BETWEEN_POINTS = 500
SAMPLING: Options = {"temperature": 1.0, "top_p": 0.95, "seed": 0}


def resident_bytes() -> int:
    """The resident set of this process; where the system does not tell, the largest it ever was."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        import resource  # not on every system

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


class Watch:
    """Notes the time at which every decode step begins, and the resident set now and then. Its own size is fixed."""

    def __init__(self, num_tokens: int) -> None:
        self.num_prompt_tokens = 0
        self.num_steps = 0
        self.step_times = np.full(num_tokens, np.nan)
        self.resident = np.full(num_tokens // TOKENS_BETWEEN_MEMORY_SAMPLES + 1, -1, np.int64)

    def note_step(self) -> None:
        if self.num_steps % TOKENS_BETWEEN_MEMORY_SAMPLES == 0:
            self.resident[self.num_steps // TOKENS_BETWEEN_MEMORY_SAMPLES] = resident_bytes()
        self.step_times[self.num_steps] = time.perf_counter()
        self.num_steps += 1

    def series(self) -> list[dict[str, Any]]:
        """Median time a token and resident set, stretch by stretch from the first token on: what a plot shows."""
        milliseconds = np.diff(self.step_times[: self.num_steps]) * 1e3
        return [
            {
                "tokens": start,
                "median_ms_per_token": round(float(np.median(milliseconds[start : start + TOKENS_BETWEEN_POINTS])), 4),
                "resident_bytes": int(self.resident[start // TOKENS_BETWEEN_MEMORY_SAMPLES]),
            }
            for start in range(0, len(milliseconds), TOKENS_BETWEEN_POINTS)
        ]


class WatchedEngine:
    """An engine whose executors report to a watch."""

    def __init__(self, engine: Engine, watch: Watch) -> None:
        self._engine, self._watch = engine, watch
        self.config, self.precision, self.window_dtype = engine.config, engine.precision, engine.window_dtype

    def extra(self, capacity: int | None = None) -> Extra:
        return self._engine.extra(capacity)

    def executor(self, num_slots: int, capacity: int | None = None) -> Any:
        return WatchedExecutor(self._engine.executor(num_slots, capacity), self._watch)


class WatchedExecutor:
    """An executor that reports every step, and how long the prompt was."""

    def __init__(self, executor: Executor, watch: Watch) -> None:
        self._executor, self._watch = executor, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def prefill(self, slots: Sequence[int], tokens: np.ndarray, positions: np.ndarray | None, logits: Any) -> Any:
        self._watch.num_prompt_tokens += tokens.shape[1]
        return self._executor.prefill(slots, tokens, positions, logits)

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        self._watch.note_step()
        return self._executor.step(slots, tokens)


def measure(model: griffinlm.LanguageModel, prompt: str | list[int], num_tokens: int) -> dict[str, Any]:
    """Writes `num_tokens` tokens and compares the stretch behind the full window with the end.

    Raises:
        GriffinError: the model's state grows with the text, or there are too few tokens to pass the window twice.
    """
    if model.config.needs_capacity:
        raise GriffinError("this model has global attention, so its memory grows with the text")
    attention = model.config.attention
    window_tokens = 0 if attention is None else attention.window_tokens or 0
    if num_tokens < 2 * window_tokens + 10:
        raise GriffinError(
            f"--tokens is {num_tokens}; with this model's window it must be at least {2 * window_tokens + 10}"
        )
    watch = Watch(num_tokens)
    model.engine = WatchedEngine(model.engine, watch)
    options: Options = {**SAMPLING, "max_tokens": num_tokens, "min_tokens": num_tokens}
    for _ in model.stream(prompt, **options):
        pass
    end_bytes = resident_bytes()

    full_at = max(0, window_tokens - watch.num_prompt_tokens)
    milliseconds = np.diff(watch.step_times[: watch.num_steps])[full_at:] * 1e3
    num_timed = min(NUM_TIMED_TOKENS, len(milliseconds) // 2)
    first, last = (float(np.median(part)) for part in (milliseconds[:num_timed], milliseconds[-num_timed:]))
    samples = watch.resident[-(-full_at // TOKENS_BETWEEN_MEMORY_SAMPLES) :]
    samples = samples[samples >= 0]
    full_bytes = int(samples[0]) if len(samples) else end_bytes
    memory_change, time_change = end_bytes / full_bytes - 1, last / first - 1
    return {
        "tokens": num_tokens,
        "prompt_tokens": watch.num_prompt_tokens,
        "window_tokens": window_tokens,
        "resident_bytes_window_full": full_bytes,
        "resident_bytes_end": end_bytes,
        "resident_bytes_most": int(max(end_bytes, samples.max(initial=0))),
        "resident_change": round(memory_change, 5),
        "resident_target": MEMORY_TARGET,
        "timed_tokens": num_timed,
        "median_ms_per_token_first_past_window": round(first, 4),
        "median_ms_per_token_last": round(last, 4),
        "time_change": round(time_change, 5),
        "time_target": TIME_TARGET,
        "series": watch.series(),
        "targets_met": bool(abs(memory_change) <= MEMORY_TARGET and abs(time_change) <= TIME_TARGET),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="eyas", help="model directory or name (default: eyas)")
    parser.add_argument("--tokens", type=int, default=20_000, help="tokens to write (default: 20000)")
    parser.add_argument("--engine", default="onnx", help=f"what computes: {' or '.join(ENGINES)} (default: onnx)")
    parser.add_argument("--weights", help="type of the weights (default: what the model's files hold)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the engine's choice)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--out", type=Path, help="directory for <processor>-<date>-memory_and_speed.json")
    options = parser.parse_args(arguments)
    try:
        check_weights(options.engine, options.weights)
        checkpoint = model_checkpoint(options.model, options.engine, options.weights)
        model = griffinlm.load(checkpoint.path, engine=options.engine, weights=options.weights, threads=options.threads)
        has_tokenizer = model.identity.fingerprint.tokenizer != ""
        results = measure(model, PROMPT if has_tokenizer else [0], options.tokens)
    except GriffinError as error:
        print(f"error: {error}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        return 2
    report = {
        **header("benchmarks/memory_and_speed.py", sys.argv[1:] if arguments is None else arguments),
        "model": options.model,
        "engine": options.engine,
        "weights": weights_run(checkpoint, options.engine, model.precision),
        "threads": options.threads,
        "sampling": SAMPLING,
        **results,
    }
    if options.out is not None:
        write(report, "memory_and_speed", options.out)
    print(json.dumps(report) if options.json else "\n".join(f"{name}: {value}" for name, value in report.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
