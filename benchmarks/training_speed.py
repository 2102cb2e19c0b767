"""How fast does a model train here and in transformers, and in how much memory?

One model in both: 6 layers, width 512, vocabulary 8,192, random weights in float32. A step is forward, backward and
fused AdamW on 2 rows of 2,048 random tokens. Each program runs in a process of its own, one after the other, `--rounds`
times in turn; both go through `transformers` classes, GriffinForCausalLM (with `skip_logits`, which transformers' own
has not) and RecurrentGemmaForCausalLM. Beside them the products of the linear layers alone are timed: no program that
multiplies in float32 by the same library is faster than these.

A second pair, `bfloat16_products`, lets both round the factors of float32 products to bfloat16, as
`torch.set_float32_matmul_precision("medium")` allows, where the processor has units for that. Targets are of the first.

    python benchmarks/training_speed.py --threads 2 --out benchmarks/results
"""

import argparse
import dataclasses
import json
import math
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from griffinlm.checkpoint.huggingface_config import to_huggingface
from griffinlm.config import AttentionConfig, ModelConfig, RecurrentConfig
from griffinlm.errors import GriffinError
from griffinlm.evaluate.own_process import peak_resident_bytes
from griffinlm.evaluate.record import header, write
from griffinlm.presets import GRIFFIN_PATTERN, bfloat16_sqrt

PROGRAMS = ("griffinlm", "transformers")
PRODUCTS = "products"
PRODUCT_REPETITIONS = 3
SPEED_TARGET, MEMORY_TARGET = 10.0, 1.0
CONFIG = ModelConfig(
    vocab_size=8192,
    width=512,
    num_layers=6,
    block_pattern=GRIFFIN_PATTERN,
    mlp_hidden=1536,
    recurrent=RecurrentConfig(width=512, num_gate_blocks=4),
    attention=AttentionConfig(num_heads=4, head_size=128, window_tokens=2048),
    embedding_scale=bfloat16_sqrt(512),
    logit_soft_cap=30.0,
)
SMOKE_CONFIG = dataclasses.replace(CONFIG, vocab_size=64, num_layers=3)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What both programs do."""

    rows: int
    tokens: int
    steps: int
    threads: int
    smoke: bool
    matmul_precision: str = "highest"
    """As `torch.set_float32_matmul_precision` takes it."""


def new_model(program: str, config: ModelConfig) -> Any:
    """The model in one program's class, in float32 with its own initial values."""
    if program == "griffinlm":
        from griffinlm.hf import GriffinConfig, GriffinForCausalLM

        return GriffinForCausalLM(GriffinConfig.from_model_config(config))
    from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

    return RecurrentGemmaForCausalLM(RecurrentGemmaConfig.from_dict(to_huggingface(config)))


def train(program: str, settings: Settings) -> dict[str, Any]:
    """Trains for some steps in this process.

    Returns:
        `seconds` of every step, `losses`, and the `peak_bytes` of the resident set.
    """
    import torch

    torch.set_num_threads(settings.threads)
    torch.set_float32_matmul_precision(settings.matmul_precision)
    torch.manual_seed(0)
    config = SMOKE_CONFIG if settings.smoke else CONFIG
    model = new_model(program, config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    options = {"skip_logits": True} if program == "griffinlm" else {}
    tokens = torch.randint(config.vocab_size, (settings.rows, settings.tokens))
    seconds, losses = [], []

    def step(tokens: torch.Tensor) -> float:
        loss = model(input_ids=tokens, labels=tokens, use_cache=False, **options).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    step(tokens[:, :16])
    for _ in range(settings.steps):
        start = time.perf_counter()
        losses.append(step(tokens))
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "losses": losses, "peak_bytes": peak_resident_bytes()}


def multiply(settings: Settings) -> dict[str, Any]:
    """Seconds of the products of every linear layer, gate and the head in a step, forward and backward, by themselves.

    Each is timed a few times in a row and counted with its median.
    """
    import torch

    torch.set_num_threads(settings.threads)
    torch.set_float32_matmul_precision(settings.matmul_precision)
    shapes = (SMOKE_CONFIG if settings.smoke else CONFIG).parameter_shapes()
    matrices = [shape for name, shape in shapes.items() if name.endswith(".weight") and ".conv." not in name]
    # A gate is as many square matrices as it has blocks.
    counts = Counter(shape[-2:] for shape in matrices for _ in range(math.prod(shape[:-2])))
    num_tokens = settings.rows * settings.tokens
    total = 0.0
    for (outputs, inputs), count in counts.items():
        x, weight, gradient = (torch.randn(s) for s in ((num_tokens, inputs), (outputs, inputs), (num_tokens, outputs)))
        for left, right in ((x, weight.T), (gradient, weight), (gradient.T, x)):
            out, seconds = left @ right, []
            for _ in range(PRODUCT_REPETITIONS):
                start = time.perf_counter()
                torch.mm(left, right, out=out)
                seconds.append(time.perf_counter() - start)
            total += count * statistics.median(seconds)
    return {"seconds": [total], "peak_bytes": peak_resident_bytes()}


def in_own_process(program: str, settings: Settings) -> dict[str, Any]:
    """`train` or `multiply` in a new interpreter, so that none's memory holds what another imported."""
    command = [sys.executable, __file__, "--program", program, "--settings", json.dumps(dataclasses.asdict(settings))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last_line = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise GriffinError(f"{program} failed: {last_line}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(settings: Settings, num_rounds: int, their_steps: int) -> dict[str, Any]:
    """Runs both programs and the products alone `num_rounds` times, in turn, and compares medians of the programs."""
    runs: dict[str, list[dict[str, Any]]] = {program: [] for program in (*PROGRAMS, PRODUCTS)}
    for number in range(num_rounds):
        for program, found in runs.items():
            print(f"{settings.matmul_precision}, round {number + 1} of {num_rounds}: {program}", file=sys.stderr)
            steps = their_steps if program == "transformers" else settings.steps
            found.append(in_own_process(program, dataclasses.replace(settings, steps=steps)))
    products = runs.pop(PRODUCTS)
    summary = {
        program: {
            "seconds_per_step": round(statistics.median(s for run in found for s in run["seconds"]), 4),
            "peak_bytes": max(run["peak_bytes"] for run in found),
        }
        for program, found in runs.items()
    }
    num_tokens = settings.rows * settings.tokens
    for found in summary.values():
        found["tokens_per_second"] = round(num_tokens / found["seconds_per_step"], 1)
    ours, theirs = summary["griffinlm"], summary["transformers"]
    return {
        "matmul_precision": settings.matmul_precision,
        "summary": summary,
        "products_seconds": round(statistics.median(run["seconds"][0] for run in products), 4),
        "speed_ratio": round(theirs["seconds_per_step"] / ours["seconds_per_step"], 2),
        "memory_ratio": round(ours["peak_bytes"] / theirs["peak_bytes"], 3),
        "runs": runs,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=2, help="rows of a step (default: 2)")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of a row (default: 2048)")
    parser.add_argument("--steps", type=int, default=5, help="steps of ours a round (default: 5)")
    parser.add_argument("--their-steps", type=int, default=1, help="steps of transformers' a round (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, help="times that both are measured (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of both (default: 2)")
    parser.add_argument("--smoke", action="store_true", help="a tiny model: shows in seconds that everything runs")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--out", type=Path, help="directory for <processor>-<date>-training_speed.json")
    parser.add_argument("--program", choices=(*PROGRAMS, PRODUCTS), help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.program:
        settings = Settings(**json.loads(options.settings))
        print(json.dumps(multiply(settings) if options.program == PRODUCTS else train(options.program, settings)))
        return 0
    try:
        for name in ("rows", "tokens", "steps", "their_steps", "rounds", "threads"):
            if getattr(options, name) < 1:
                raise GriffinError(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be at least 1")
        settings = Settings(options.rows, options.tokens, options.steps, options.threads, options.smoke)
        results = measure(settings, options.rounds, options.their_steps)
        rounded = dataclasses.replace(settings, matmul_precision="medium")
        results["bfloat16_products"] = measure(rounded, options.rounds, options.their_steps)
    except GriffinError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report = {
        **header("benchmarks/training_speed.py", sys.argv[1:] if arguments is None else arguments),
        "transformers": version("transformers"),
        "torch": version("torch"),
        "config": (SMOKE_CONFIG if options.smoke else CONFIG).to_dict(),
        **dataclasses.asdict(settings),
        **results,
        "speed_target": SPEED_TARGET,
        "memory_target": MEMORY_TARGET,
        "targets_met": results["speed_ratio"] >= SPEED_TARGET and results["memory_ratio"] <= MEMORY_TARGET,
    }
    if options.out is not None:
        write(report, "training_speed", options.out)
    print(json.dumps(report if options.json else without_runs(report), indent=None if options.json else 2))
    return 0


def without_runs(report: dict[str, Any]) -> dict[str, Any]:
    """The report without what each run measured."""
    return {k: without_runs(v) if isinstance(v, dict) else v for k, v in report.items() if k != "runs"}


if __name__ == "__main__":
    sys.exit(main())
