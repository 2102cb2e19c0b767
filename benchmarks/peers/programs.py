"""The programs that are compared and how each is run: always in a process of its own, by an interpreter that has it."""

import dataclasses
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from griffinlm.errors import GriffinError

from .settings import Settings

Figures = list[dict[str, Any]]

FOLDER = Path(__file__).parents[1]
GRIFFIN = "import sys; from griffinlm.cli.main import main; sys.exit(main())"
PROBE = """
import importlib, importlib.metadata, json, sys
for module in sys.argv[2:]: importlib.import_module(module)
print(json.dumps({"version": importlib.metadata.version(sys.argv[1])}))
"""


class RunError(GriffinError):
    """A program could not be run or ended with an error; the message is the last line it wrote."""


def run_lines(command: list[str]) -> Figures:
    """Runs a command and parses every line of its standard output as a JSON object.

    Raises:
        RunError: it could not be run, ended with an error, or wrote something else.
    """
    path = os.pathsep.join(filter(None, (str(FOLDER), os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=False
        )
    except OSError as error:
        raise RunError(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        told = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        # The command `griffin` tells its error in the first line and may add a hint.
        chosen = next((line for line in told if line.startswith("error: ")), told[-1] if told else "")
        raise RunError(chosen or f"it ended with status {done.returncode}")
    try:
        return [json.loads(line) for line in done.stdout.splitlines()]
    except json.JSONDecodeError:
        raise RunError(f"it wrote something that is not JSON: {done.stdout[:60]!r}") from None


@dataclass(frozen=True)
class Program:
    """A program with one model in one precision. Its files lie in `work`, its package in what `python` can import."""

    name: str
    model: str
    weights: str
    settings: Settings

    package: ClassVar[str]
    """What `--python-for` and the record call it."""
    distribution: ClassVar[str]
    modules: ClassVar[tuple[str, ...]]
    """What must be importable."""

    def version(self, python: str) -> str:
        """Version of the package that `python` would run; RunError where it lacks it."""
        return run_lines([python, "-c", PROBE, self.distribution, *self.modules])[0]["version"]

    def prepare(self, python: str, work: Path) -> None:
        """Writes the files that `measure` needs, where they are not there yet."""

    def measure(self, python: str, work: Path) -> Figures:
        """One object per figure: `measure`, `position`, `rows`, `milliseconds` of a call, `tokens_per_second`, ..."""
        raise NotImplementedError


class Griffin(Program):
    """This package, by the command that its users have: sampling and writing the state are included."""

    package, distribution, modules = "griffinlm", "griffinlm", ("griffinlm", "onnxruntime")

    def measure(self, python: str, work: Path) -> Figures:
        settings = self.settings
        positions = ",".join(map(str, settings.positions))
        return [
            *self._bench(python, "prefill", "0", 1, settings.prefill_tokens, settings.prefill_tokens),
            *self._bench(python, "decode", positions, 1, settings.decode_tokens, 1),
            *self._bench(python, "batch", "0", settings.batch_rows, settings.decode_tokens, settings.batch_rows),
        ]

    def _bench(
        self, python: str, measure: str, positions: str, rows: int, num_tokens: int, tokens_per_call: int
    ) -> Figures:
        options = {
            "preset": self.model,
            "weights": self.weights,
            "positions": positions,
            "rows": rows,
            "tokens": num_tokens,
            "threads": self.settings.threads,
        }
        command = [python, "-c", GRIFFIN, "bench", measure, "--json"]
        lines = run_lines(command + [f"--{name}={value}" for name, value in options.items()])
        return [
            {**line, "measure": measure, "milliseconds": 1e3 * tokens_per_call / line["tokens_per_second"]}
            for line in lines
        ]


class LlamaCpp(Program):
    """llama.cpp by its Python binding, on files written here."""

    package, distribution, modules = "llama_cpp", "llama_cpp_python", ("llama_cpp", "gguf", "numpy")

    def _path(self, work: Path) -> Path:
        return work / f"{self.model}-{self.weights}.gguf"

    def prepare(self, python: str, work: Path) -> None:
        if not self._path(work).exists():
            run_lines([python, "-m", "peers.gguf_models", self.model, self.weights, str(self._path(work))])

    def measure(self, python: str, work: Path) -> Figures:
        settings = json.dumps(dataclasses.asdict(self.settings))
        figures = run_lines([python, "-m", "peers.llama_cpp_runs", str(self._path(work)), settings])
        best: dict[tuple[str, int, int], dict[str, Any]] = {}
        for figure in figures:
            key = figure["measure"], figure["position"], figure["rows"]
            if key not in best or figure["milliseconds"] < best[key]["milliseconds"]:
                best[key] = figure
        return list(best.values())


class Transformers(Program):
    """The implementation of RecurrentGemma that most people run."""

    package, distribution, modules = "transformers", "transformers", ("transformers", "torch")

    def measure(self, python: str, work: Path) -> Figures:
        settings = json.dumps(dataclasses.asdict(self.settings))
        return run_lines([python, "-m", "peers.transformers_runs", self.model, settings])


def all_programs(threads: int, smoke: bool) -> tuple[Program, ...]:
    """Everything that is compared. `smoke` takes models so small that all of it runs in seconds."""
    if smoke:
        full = Settings(threads, (0, 64), decode_tokens=2, prefill_tokens=32, prefill_repeats=1, batch_rows=2)
        ours, gemma, mamba, theirs = "eyas", "tiny-gemma", "tiny-mamba", "tiny-recurrentgemma"
    else:
        full = Settings(
            threads, (0, 2048, 8192, 32_768), decode_tokens=32, prefill_tokens=512, prefill_repeats=2, batch_rows=8
        )
        ours, gemma, mamba, theirs = "recurrentgemma-2b", "gemma-2b", "mamba-2.8b", "recurrentgemma-2b"
    # A state of fixed size makes every position cost the same: Mamba's is measured at the first one only.
    # Nor are several rows asked of it: with AMX llama.cpp ends in a segmentation fault there.
    first = dataclasses.replace(full, positions=(0,), batch_rows=0)
    # Without fast bfloat16 transformers needs seconds a token.
    few = dataclasses.replace(full, positions=full.positions[:2], decode_tokens=4, prefill_tokens=64, prefill_repeats=1)
    return (
        Griffin("griffin int4", ours, "int4", full),
        LlamaCpp("llama.cpp Gemma Q4_0", gemma, "Q4_0", full),
        LlamaCpp("llama.cpp Mamba Q4_0", mamba, "Q4_0", first),
        Griffin("griffin int8", ours, "int8", full),
        LlamaCpp("llama.cpp Gemma Q8_0", gemma, "Q8_0", full),
        Transformers("transformers bfloat16", theirs, "bfloat16", few),
    )
