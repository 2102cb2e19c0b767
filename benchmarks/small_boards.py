"""What does a computer of little memory run?

Each model reads a prompt and writes tokens in a process of its own under a limit of memory: a control group, where
one may be made (Linux, as root), else the address space (`ulimit -v`). What does not fit must be refused, in one line,
before it is loaded; a process that is killed instead is a failure. The default limits are those of computers with
256 MB, 512 MB, 1 GB and 2 GB whose system keeps 64 MiB. The speed is that of one thread of the machine that it runs on.

    python benchmarks/small_boards.py --out benchmarks/results
"""

import argparse
import contextlib
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import griffinlm
from griffinlm.edge.control_group import GROUPS, read_number
from griffinlm.errors import GriffinError
from griffinlm.evaluate.benchmark_weights import model_checkpoint, random_checkpoint
from griffinlm.evaluate.own_process import peak_resident_bytes
from griffinlm.evaluate.record import header, write

LIMITS_MIB = (192, 448, 960, 1984)
WARM_UP_TOKENS, PROMPT_TOKENS, WRITTEN_TOKENS = 32, 256, 32
REFUSED = 2


class Model(NamedTuple):
    """What is run: a bundled model, or random weights of a preset."""

    name: str
    weights: str
    is_preset: bool


MODELS = (
    Model("eyas", "float32", False),
    Model("kestrel-500m", "int4", True),
    Model("recurrentgemma-2b", "int4", True),
)


@dataclass(frozen=True)
class Run:
    """What became of a model under a limit. Tokens are counted by the second of processor time."""

    model: str
    weights: str
    limit_bytes: int
    limited_by: str
    outcome: str
    """`runs`, `refused` or `killed`."""
    refusal: str | None = None
    prompt_tokens_per_second: float | None = None
    tokens_per_second: float | None = None
    peak_resident_bytes: int | None = None
    """Of the process, pages of files included."""
    peak_group_bytes: int | None = None
    """Of the control group, pages of files that it could have dropped included."""


class Limit:
    """A limit of memory that processes may be started under."""

    limited_by = "address space (ulimit -v)"

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes

    def enter(self) -> None:
        """Puts the calling process under it."""
        resource.setrlimit(resource.RLIMIT_AS, (self.num_bytes, self.num_bytes))

    def peak_bytes(self) -> int | None:
        return None


class GroupLimit(Limit):
    """A control group with a limit."""

    def __init__(self, num_bytes: int, folder: Path, version: int) -> None:
        super().__init__(num_bytes)
        self._folder, self.limited_by = folder, f"control group (version {version})"
        self._peak = "memory.peak" if version == 2 else "memory.max_usage_in_bytes"

    def enter(self) -> None:
        (self._folder / "cgroup.procs").write_text("0")

    def peak_bytes(self) -> int | None:
        return read_number(self._folder / self._peak)


@contextlib.contextmanager
def limited(num_bytes: int) -> Iterator[Limit]:
    """A control group of either version with this limit and no swap; the address space where none may be made."""
    for version, root, file in ((2, GROUPS, "memory.max"), (1, GROUPS / "memory", "memory.limit_in_bytes")):
        folder = root / f"griffinlm-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            if (folder / file).exists():
                (folder / file).write_text(str(num_bytes))
                if (folder / "memory.swap.max").exists():
                    (folder / "memory.swap.max").write_text("0")
                yield GroupLimit(num_bytes, folder, version)
                return
        finally:
            folder.rmdir()
    yield Limit(num_bytes)


def run_limited(model: Model, path: Path, limit: Limit) -> Run:
    """Runs a model in a process of its own under a limit."""
    command = [sys.executable, __file__, "--measure", str(path)]
    enter: Callable[[], None] = limit.enter
    process = subprocess.run(command, capture_output=True, text=True, preexec_fn=enter)
    known: dict[str, Any] = {
        "model": model.name,
        "weights": model.weights,
        "limit_bytes": limit.num_bytes,
        "limited_by": limit.limited_by,
        "peak_group_bytes": limit.peak_bytes(),
    }
    if process.returncode == 0:
        return Run(**known, outcome="runs", **json.loads(process.stdout))
    if process.returncode == REFUSED:
        return Run(**known, outcome="refused", refusal=process.stderr.splitlines()[0].replace(str(path), model.name))
    return Run(**known, outcome="killed")


def measure(path: Path) -> dict[str, Any]:
    """Speed and peak memory of a model in this process, on one thread.

    The speed is by processor time: what else the machine does disturbs it little.

    Raises:
        GriffinError: it does not fit.
    """
    engine = griffinlm.load(path, threads=1).engine
    executor = engine.executor(1)
    prompt = np.random.default_rng(0).integers(0, engine.config.vocab_size, (1, WARM_UP_TOKENS + PROMPT_TOKENS))
    executor.prefill([0], prompt[:, :WARM_UP_TOKENS], None, "last")
    start = time.process_time()
    logits = executor.prefill([0], prompt[:, WARM_UP_TOKENS:], None, "last")
    assert logits is not None, "they were asked for"
    read = time.process_time()
    for _ in range(WRITTEN_TOKENS):
        logits = executor.step([0], [int(logits.reshape(-1).argmax())])
    written = time.process_time()
    return {
        "prompt_tokens_per_second": round(PROMPT_TOKENS / (read - start), 2),
        "tokens_per_second": round(WRITTEN_TOKENS / (written - read), 2),
        "peak_resident_bytes": peak_resident_bytes(),
    }


def described(run: Run) -> str:
    """One line."""
    line = f"limit {run.limit_bytes >> 20} MiB by {run.limited_by}: {run.model} {run.weights} {run.outcome}"
    if run.outcome == "refused":
        return f"{line}: {run.refusal}"
    if run.outcome == "killed":
        return line
    peak = f"{(run.peak_resident_bytes or 0) / 1e6:,.0f} MB resident"
    if run.peak_group_bytes is not None:
        peak += f", {run.peak_group_bytes / 1e6:,.0f} MB in the group"
    return f"{line}: prompt {run.prompt_tokens_per_second} tokens/s, writing {run.tokens_per_second}; at most {peak}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--limits", default=",".join(map(str, LIMITS_MIB)), help="MiB, with commas between them")
    parser.add_argument("--models", default=",".join(model.name for model in MODELS), help="names of those known")
    parser.add_argument("--measure", type=Path, help="a model directory: measured in this process, without a limit")
    parser.add_argument("--out", type=Path, help="directory for <processor>-<date>-small_boards.json")
    options = parser.parse_args(arguments)
    try:
        if options.measure is not None:
            print(json.dumps(measure(options.measure)))
            return 0
        runs = list(all_runs(_models(options.models), _limits(options.limits)))
    except GriffinError as error:
        print(f"error: {error}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        return REFUSED
    report = {
        **header("benchmarks/small_boards.py", sys.argv[1:] if arguments is None else arguments),
        "threads": 1,
        "prompt_tokens": PROMPT_TOKENS,
        "written_tokens": WRITTEN_TOKENS,
        "runs": [asdict(run) for run in runs],
    }
    if options.out is not None:
        write(report, "small_boards", options.out)
    return int(any(run.outcome == "killed" for run in runs))


def all_runs(models: Sequence[Model], limits_mib: Sequence[int]) -> Iterator[Run]:
    """Every model under every limit, told as it comes. Weights are made before, without a limit."""
    for model in models:
        find = random_checkpoint if model.is_preset else model_checkpoint
        checkpoint = find(model.name, "onnx", model.weights)
        for mib in limits_mib:
            with limited(mib << 20) as limit:
                run = run_limited(model, checkpoint.path, limit)
            print(described(run), flush=True)
            yield run


def _models(text: str) -> list[Model]:
    known = {model.name: model for model in MODELS}
    wrong = [name for name in text.split(",") if name not in known]
    if wrong:
        raise GriffinError(f"models has {wrong[0]!r}; known are {', '.join(known)}")
    return [known[name] for name in text.split(",")]


def _limits(text: str) -> list[int]:
    if not re.fullmatch(r"[1-9][0-9]{0,7}(,[1-9][0-9]{0,7})*", text):
        raise GriffinError(f"limits is {text[:60]!r}; it must be whole MiB with commas between them, as in 448,960")
    return list(map(int, text.split(",")))


if __name__ == "__main__":
    sys.exit(main())
