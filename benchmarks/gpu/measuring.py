"""What every measurement on a GPU needs: a device, a clock that waits for it, a budget of time, and its record."""

import argparse
import gc
import json
import os
import shlex
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

if "--smoke" in sys.argv:
    # Read when Triton is imported: its kernels then run on a CPU.
    os.environ["TRITON_INTERPRET"] = "1"

import torch

from griffinlm.evaluate.record import header, write

PACKAGES = ("torch", "triton", "transformers", "numpy")
COPY_BYTES = 1 << 30
MOST_SECONDS = 2.0
"""For which a call is repeated."""
RESERVED_SHARE = 0.1
"""Of a GPU's memory, for what is not counted: graphs, workspaces, fragments."""

Record = dict[str, Any]


class Bench:
    """A run of one module: where it runs, how long it may, and what it has found.

    Attributes:
        smoke: sizes are tiny and the device is the CPU; figures mean nothing.
        facts: what the record says of the whole run.
        rows: what was measured, one dictionary each; printed as they come.
    """

    def __init__(self, name: str, description: str | None) -> None:
        parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
        parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU: shows that everything runs")
        parser.add_argument("--budget-seconds", type=float, default=120.0, help="begin nothing new after this time")
        parser.add_argument("--out", type=Path, help="directory for <device>-<date>-gpu_<name>.json")
        options = parser.parse_args()
        self.name, self.smoke, self.out = name, options.smoke, options.out
        self.facts: Record = {}
        self.rows: list[Record] = []
        self._end = time.monotonic() + options.budget_seconds
        if not self.smoke and not torch.cuda.is_available():
            print("error: there is no GPU here\nhint: --smoke runs tiny sizes on the CPU", file=sys.stderr)
            raise SystemExit(2)
        self.device = torch.device("cpu" if self.smoke else "cuda")
        self.dtype = torch.float32 if self.smoke else torch.bfloat16
        torch.manual_seed(0)
        torch.set_num_threads(min(torch.get_num_threads(), 4))

    @property
    def device_name(self) -> str:
        return "cpu" if self.smoke else torch.cuda.get_device_name()

    @property
    def has_time(self) -> bool:
        return time.monotonic() < self._end

    def free_bytes(self) -> int:
        """Memory that a measurement may take."""
        if self.smoke:
            return 1 << 28
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return int(free - RESERVED_SHARE * total)

    def seconds(self, run: Callable[[], object], repeats: int = 7, warm_up: int = 2) -> float:
        """The median time of a call where calls follow each other: the device's, or the host's where that is longer.

        Of a call that takes long there are fewer repeats, down to one.
        """
        if self.smoke:
            return self._seconds_of_one(run)
        for _ in range(warm_up):
            run()
        one = self._seconds_of_one(run)
        repeats = min(repeats, int(MOST_SECONDS / one))
        if repeats < 2:
            return one
        # The device writes down when it passes a mark; waiting in between would count the start of every call.
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        marks[0].record()
        for mark in marks[1:]:
            run()
            mark.record()
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in pairwise(marks)) / 1e3

    def copy_bandwidth(self) -> float:
        """Bytes a second that a copy on the device reads and writes."""
        source = torch.ones((1 << 16) if self.smoke else COPY_BYTES, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.numel() / self.seconds(lambda: target.copy_(source), repeats=20)

    def measure(self, what: Record, run: Callable[[], Record], is_peer: bool = False) -> Record | None:
        """Adds what `run` finds to the rows.

        Where the time is used up, or something is missing or fails, the row says so; of ours, a failure fails the run.
        """
        row: Record = dict(what)
        if not self.has_time:
            row["not_measured"] = "the time budget was used up"
        else:
            try:
                row |= run()
            except torch.OutOfMemoryError:
                row["not_measured"] = "the GPU's memory is too small"
            except Exception as error:  # One failure must not cost the other figures.
                row["not_measured" if is_peer else "failed"] = f"{type(error).__name__}: {error}".split("\n")[0][:300]
                if not is_peer:
                    traceback.print_exc()
        self.rows.append(row)
        # One piece, so that no other program's words come between.
        print(json.dumps(row) + "\n", end="", flush=True)
        # A run that is ended from outside leaves what it has.
        self._write(is_complete=False)
        gc.collect()
        if self.device.type == "cuda":
            # A device that an earlier fault has stopped says so in every row.
            with suppress(RuntimeError):
                torch.cuda.empty_cache()
        return row if not row.keys() & {"failed", "not_measured"} else None

    def finish(self) -> int:
        """Writes the whole record; the exit status: 1 where something of ours failed."""
        self._write(is_complete=True)
        return 1 if any("failed" in row for row in self.rows) else 0

    def _write(self, is_complete: bool) -> None:
        if self.out is None:
            return
        report = header(f"benchmarks/gpu/{self.name}.py", sys.argv[1:])
        report["command"] = f"PYTHONPATH=src:benchmarks python -m gpu.{self.name} {shlex.join(sys.argv[1:])}".strip()
        report |= {"host_processor": report["processor"], "processor": self.device_name}
        report |= {"versions": {name: _version(name) for name in PACKAGES}, "is_smoke": self.smoke}
        if self.device.type == "cuda":
            report |= {"memory_bytes": torch.cuda.get_device_properties(0).total_memory, "cuda": torch.version.cuda}
        write({**report, "is_complete": is_complete, **self.facts, "rows": self.rows}, f"gpu_{self.name}", self.out)

    def _seconds_of_one(self, run: Callable[[], object]) -> float:
        self._wait()
        start = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
