"""The benchmark runs from the command line on a small model and reports what it promises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from griffinlm.checkpoint import initial_tensors, write_checkpoint
from griffinlm.config import ModelConfig

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "memory_and_speed.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


def random_model(preset: str, directory: Path) -> str:
    config = ModelConfig.preset(preset)
    write_checkpoint(config, initial_tensors(config, seed=0), directory, "griffinlm")
    return str(directory)


@pytest.mark.parametrize(
    ("options", "engine", "weights"),
    [((), "onnx", "float32"), (("--engine", "torch", "--weights", "bfloat16"), "torch", "bfloat16")],
)
def test_reports_memory_and_time_past_the_window(tmp_path: Path, options: tuple[str, ...], engine: str, weights: str):
    model, out = random_model("tiny-griffin", tmp_path / "model"), tmp_path / "results"
    done = run("--model", model, "--tokens", "300", "--json", "--out", str(out), *options)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["engine"], report["weights"]) == (engine, weights)
    assert (report["tokens"], report["prompt_tokens"], report["window_tokens"]) == (300, 1, 7)
    assert report["timed_tokens"] == (298 - 6) // 2
    assert report["resident_bytes_end"] > 0
    assert report["median_ms_per_token_last"] > 0
    (written,) = out.iterdir()
    assert written.name.endswith(f"-{report['date']}-memory_and_speed.json")
    assert json.loads(written.read_text(encoding="utf-8")) == report


@pytest.mark.parametrize(
    ("preset", "num_tokens", "message"),
    [("tiny-griffin", 23, "--tokens is 23"), ("tiny-gemma", 300, "global attention")],
)
def test_refuses_what_it_cannot_measure(tmp_path: Path, preset: str, num_tokens: int, message: str):
    done = run("--model", random_model(preset, tmp_path / "model"), "--tokens", str(num_tokens))
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""
