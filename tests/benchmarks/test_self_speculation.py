"""The benchmark runs from the command line on a small model and reports what it promises."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from griffinlm.checkpoint import initial_tensors, open_checkpoint, write_checkpoint
from griffinlm.recursive import Recursion, write_recursive

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "self_speculation.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_guesses_are_counted_and_change_no_text(tiny_model_directory: Path, tmp_path: Path, engine: str):
    config = dataclasses.replace(open_checkpoint(tiny_model_directory).config, num_layers=6)
    write_checkpoint(config, initial_tensors(config, 0), tmp_path / "plain", "griffinlm", None, tiny_model_directory)
    write_recursive(open_checkpoint(tmp_path / "plain"), Recursion(2), tmp_path / "recursive")
    text = tmp_path / "text.txt"
    text.write_text("the hawk over the sea " * 40, encoding="utf-8")
    small = ("--engine", engine, "--threads", 1, "--guesses", 1, 3, "--prompts", 2, "--tokens", 8)
    done = run(tmp_path / "recursive", text, *small, "--out", tmp_path / "results")
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "results").iterdir()
    found = json.loads(file.read_text(encoding="utf-8"))["guesses"]
    assert list(found) == ["1", "3"]
    for guesses, one in found.items():
        assert one["equal_texts"] == one["texts"] == 2
        assert 1 <= one["tokens_a_reading"] <= int(guesses) + 1
        assert 0 <= one["true_guesses"] <= 1
        assert one["gain"] > 0
        assert one["gain_by_weights"] <= one["tokens_a_reading"]
    refused = run(tmp_path / "recursive", tmp_path / "none.txt", *small)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: ")
    assert len(refused.stderr.splitlines()) == 1
