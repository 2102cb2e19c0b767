"""What do many conversations at once cost, and how fast does a kept one go on?

Rows through the service against the executor's bare batch; what choosing the tokens of all rows costs by vocabulary;
the time between tokens of those that write while a long prompt is read; the first token of a later turn from the store,
in memory and on disk, against reading all of the conversation anew; and the bytes that the history of a conversation
takes.

    python benchmarks/scheduler_load.py --model eyas --out benchmarks/results
    python benchmarks/scheduler_load.py --preset recurrentgemma-2b --weights int8 --threads 2 --steps 40 --rounds 1
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import griffinlm
from griffinlm.errors import GriffinError
from griffinlm.evaluate.benchmark_weights import (
    ENGINES,
    check_weights,
    model_checkpoint,
    random_checkpoint,
    weights_run,
)
from griffinlm.evaluate.record import header, write
from griffinlm.generation.answering import GenerationOptions
from griffinlm.generation.job import Event, Job, Piece
from griffinlm.generation.parameters import SamplingParameters
from griffinlm.generation.sampling import Sampler, choose_together
from griffinlm.generation.service import GenerationService
from griffinlm.generation.store import StateStore

ROWS = 8
SPEED_TARGET, PACE_TARGET, START_TARGET, SIZE_TARGET = 0.90, 3.0, 0.05, 0.25
NUM_STEPS_DISCARDED = 3
MESSAGE_TOKENS, ANSWER_TOKENS = 32, 2
"""Of a turn of a conversation of many turns."""
NUM_LAST_TURNS = 5
"""Of a conversation of many turns; their median stands for the last one."""
VOCABULARIES = (4_096, 32_768, 256_000)
CUTS: dict[str, dict[str, Any]] = {
    "none": {},
    "top-k 40": {"top_k": 40},
    "top-p 0.95": {"top_p": 0.95},
    "min-p 0.05": {"min_p": 0.05},
    "top-k 40, top-p 0.95": {"top_k": 40, "top_p": 0.95},
}
LARGE_BYTES = 1 << 36
DEFAULT_PRESET_WEIGHTS = {"onnx": "int4", "torch": "float32"}


def answer(num_tokens: int) -> GenerationOptions:
    return GenerationOptions.of({"max_tokens": num_tokens, "min_tokens": num_tokens, "seed": 0})


def document(model: griffinlm.LanguageModel, num_tokens: int, seed: int) -> list[int]:
    """Random tokens."""
    return np.random.default_rng(seed).integers(8, model.config.vocab_size, num_tokens).tolist()


def run(service: GenerationService) -> list[Event]:
    events: list[Event] = []
    while service.busy:
        events += service.step(0.01)
    return events


def all_write(service: GenerationService, num_jobs: int) -> None:
    """Goes on until so many jobs have written."""
    jobs: set[Job] = set()
    while len(jobs) < num_jobs:
        jobs |= {event.job for event in service.step() if isinstance(event, Piece)}


def bare_seconds(model: griffinlm.LanguageModel, prompts: list[list[int]], num_steps: int) -> list[float]:
    """Seconds of steps of the executor itself."""
    executor, slots, found = model.engine.executor(ROWS), range(ROWS), []
    for slot, prompt in enumerate(prompts):
        executor.prefill([slot], np.asarray([prompt], np.int64), None, "none")
    for _ in range(num_steps):
        start = time.perf_counter()
        executor.step(slots, [9] * ROWS)
        found.append(time.perf_counter() - start)
    return found[NUM_STEPS_DISCARDED:]


def service_seconds(model: griffinlm.LanguageModel, prompts: list[list[int]], num_steps: int) -> list[float]:
    """Seconds of steps in which all rows of a service write a token each, sampling included."""
    service, found = GenerationService(model, num_slots=ROWS), []
    for prompt in prompts:
        service.submit(Job("a", prompt, answer(num_steps + 2 * ROWS)))
    all_write(service, ROWS)
    for _ in range(num_steps):
        start = time.perf_counter()
        service.step()
        found.append(time.perf_counter() - start)
    service.close()
    return found[NUM_STEPS_DISCARDED:]


def batch_speed(model: griffinlm.LanguageModel, num_steps: int, num_rounds: int) -> dict[str, Any]:
    """Both in turn, so that a drifting machine shows in both."""
    prompts, rounds = [document(model, 64, seed) for seed in range(ROWS)], []
    for _ in range(num_rounds):
        bare = statistics.median(bare_seconds(model, prompts, num_steps))
        rounds.append((bare, statistics.median(service_seconds(model, prompts, num_steps))))
    share = statistics.median(bare / served for bare, served in rounds)
    return {
        "rows": ROWS,
        "bare_ms_per_step": [round(bare * 1e3, 4) for bare, _ in rounds],
        "service_ms_per_step": [round(served * 1e3, 4) for _, served in rounds],
        "share": round(share, 4),
        "target": SPEED_TARGET,
        "met": share >= SPEED_TARGET,
    }


def sampling(num_steps: int) -> dict[str, dict[str, float]]:
    """Median milliseconds to choose the tokens of all rows of a step, by vocabulary and cut."""
    found: dict[str, dict[str, float]] = {}
    for vocab_size in VOCABULARIES:
        logits = np.random.default_rng(0).normal(0, 3, (ROWS, vocab_size)).astype(np.float32)
        for name, cut in CUTS.items():
            samplers = [Sampler(SamplingParameters(seed=row, **cut)) for row in range(ROWS)]
            seconds = []
            for _ in range(num_steps):
                start = time.perf_counter()
                choose_together(samplers, logits)
                seconds.append(time.perf_counter() - start)
            found.setdefault(str(vocab_size), {})[name] = round(statistics.median(seconds) * 1e3, 4)
    return found


def pace(model: griffinlm.LanguageModel, prompt_tokens: int, num_steps: int) -> dict[str, Any]:
    """Time between tokens of all rows but one, while that one's prompt is read."""
    service, seconds = GenerationService(model, num_slots=ROWS), []
    for seed in range(ROWS - 1):
        service.submit(Job("a", document(model, 64, seed), answer(100 * num_steps + prompt_tokens)))
    all_write(service, ROWS - 1)
    for _ in range(num_steps):
        start = time.perf_counter()
        service.step()
        seconds.append(time.perf_counter() - start)
    quiet = statistics.median(seconds[NUM_STEPS_DISCARDED:])
    late, seconds = service.submit(Job("a", document(model, prompt_tokens, ROWS), answer(1))), []
    events: list[Event] = []
    while not any(event.job is late for event in events):
        start = time.perf_counter()
        events = service.step()
        seconds.append(time.perf_counter() - start)
    service.close()
    slowest = float(np.percentile(seconds, 99))
    return {
        "prompt_tokens": prompt_tokens,
        "steps": len(seconds),
        "quiet_median_ms": round(quiet * 1e3, 4),
        "median_ms": round(statistics.median(seconds) * 1e3, 4),
        "percentile_99_ms": round(slowest * 1e3, 4),
        "percentile_99_over_median": round(slowest / statistics.median(seconds), 4),
        "percentile_99_over_quiet_median": round(slowest / quiet, 4),
        "target": PACE_TARGET,
        "met": slowest < PACE_TARGET * statistics.median(seconds),
    }


def turn(service: GenerationService, token_ids: list[int], is_kept: bool = True) -> tuple[float, list[int]]:
    """Seconds to the first token of an answer, and the document with the answer."""
    job = Job("a" if is_kept else "nobody", token_ids, answer(ANSWER_TOKENS), keep=is_kept)
    start = time.perf_counter()
    service.submit(job)
    events = service.step(0.01)
    while not any(isinstance(event, Piece) for event in events):
        events += service.step(0.01)
    seconds = time.perf_counter() - start
    events += run(service)
    written = [token for event in events if isinstance(event, Piece) for token in event.token_ids]
    return seconds, [*token_ids, *written]


def second_turn(
    service: GenerationService, model: griffinlm.LanguageModel, prompt_tokens: int, seed: int
) -> tuple[float, float]:
    """Seconds to the first token of a second turn behind a long prompt: from what is kept, and read anew."""
    _, known = turn(service, document(model, prompt_tokens, 1000 + 2 * seed))
    longer = known + document(model, MESSAGE_TOKENS, 1001 + 2 * seed)
    kept, _ = turn(service, longer)
    fresh, _ = turn(service, longer, is_kept=False)
    return kept, fresh


def later_turns(
    model: griffinlm.LanguageModel, prompt_tokens: int, num_turns: int, num_rounds: int, memory_bytes: int
) -> dict[str, Any]:
    """Medians of the second turn of conversations with a long first one, and of the last ones of one of many turns."""
    with tempfile.TemporaryDirectory() as folder:
        store = StateStore(model, Path(folder) / "store", memory_bytes=memory_bytes, disk_bytes=LARGE_BYTES)
        service = GenerationService(model, store, num_slots=1)
        seconds = [second_turn(service, model, prompt_tokens, seed) for seed in range(num_rounds)]
        second, fresh = (statistics.median(found) for found in zip(*seconds, strict=True))
        before, known, turns = store.counts().record_bytes, [], []
        each = max(MESSAGE_TOKENS, prompt_tokens // num_turns - ANSWER_TOKENS)
        for number in range(num_turns):
            of_turn, known = turn(service, known + document(model, each, 2 + number))
            turns.append(of_turn)
        last = statistics.median(turns[-NUM_LAST_TURNS:])
        fresh_last = statistics.median(
            turn(service, known[:-ANSWER_TOKENS], is_kept=False)[0] for _ in range(num_rounds)
        )
        stored = store.counts().record_bytes - before
        full = num_turns * service.state_bytes
        service.close()
        store.close()
    return {
        "second_turn_ms": round(second * 1e3, 3),
        "fresh_prefill_ms": round(fresh * 1e3, 3),
        "second_turn_share": round(second / fresh, 5),
        "turns": num_turns,
        "tokens_at_last_turn": len(known),
        "last_turn_ms": round(last * 1e3, 3),
        "fresh_prefill_at_last_turn_ms": round(fresh_last * 1e3, 3),
        "last_turn_share": round(last / fresh_last, 5),
        "target": START_TARGET,
        "met": max(second / fresh, last / fresh_last) < START_TARGET,
        "stored_bytes": stored,
        "full_states_bytes": full,
        "stored_share": round(stored / full, 5),
        "stored_target": SIZE_TARGET,
        "stored_met": stored < SIZE_TARGET * full,
    }


def measure(model: griffinlm.LanguageModel, options: argparse.Namespace) -> dict[str, Any]:
    if model.config.needs_capacity:
        raise GriffinError("this model has global attention, so its states have no fixed size")
    sizes = model, options.prompt_tokens, options.turns, options.rounds
    return {
        "batch": batch_speed(model, options.steps, options.rounds),
        "sampling, ms a step": sampling(options.steps),
        "pace": pace(model, options.prompt_tokens, options.steps),
        "later turns, from memory": later_turns(*sizes, LARGE_BYTES),
        "later turns, from disk": later_turns(*sizes, 0),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", help="model directory or name (default: eyas)")
    parser.add_argument("--preset", help="random weights of this shape in the place of a model")
    parser.add_argument("--engine", default="onnx", help=f"what computes: {' or '.join(ENGINES)} (default: onnx)")
    parser.add_argument("--weights", help="type of the weights (default: the model's own, int4 for presets on onnx)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the engine's choice)")
    parser.add_argument("--prompt-tokens", type=int, default=4000, help="of long prompts (default: 4000)")
    parser.add_argument("--turns", type=int, default=100, help="of a conversation of many turns (default: 100)")
    parser.add_argument("--steps", type=int, default=100, help="steps that are timed (default: 100)")
    parser.add_argument("--rounds", type=int, default=3, help="times that the batch is measured (default: 3)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--out", type=Path, help="directory for <processor>-<date>-scheduler_load.json")
    options = parser.parse_args(arguments)
    try:
        for name, least in (("prompt_tokens", 1), ("turns", 1), ("steps", NUM_STEPS_DISCARDED + 1), ("rounds", 1)):
            if getattr(options, name) < least:
                raise GriffinError(
                    f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be {least} or more"
                )
        if options.model is not None and options.preset is not None:
            raise GriffinError("--model and --preset are both given; one of them says what runs")
        check_weights(options.engine, options.weights)
        if options.preset is None:
            checkpoint = model_checkpoint(options.model or "eyas", options.engine, options.weights)
        else:
            weights = options.weights or DEFAULT_PRESET_WEIGHTS[options.engine]
            checkpoint = random_checkpoint(options.preset, options.engine, weights)
        model = griffinlm.load(checkpoint.path, engine=options.engine, weights=options.weights, threads=options.threads)
        results = measure(model, options)
    except GriffinError as error:
        print(f"error: {error}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        return 2
    report = {
        **header("benchmarks/scheduler_load.py", sys.argv[1:] if arguments is None else arguments),
        "model": options.preset or options.model or "eyas",
        "engine": options.engine,
        "weights": weights_run(checkpoint, options.engine, model.precision),
        "threads": options.threads,
        **results,
    }
    if options.out is not None:
        write(report, "scheduler_load", options.out)
    print(json.dumps(report) if options.json else "\n".join(f"{name}: {value}" for name, value in report.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
