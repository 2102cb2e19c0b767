"""The benchmark runs from the command line on a small model and reports what it promises."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from griffinlm.checkpoint import initial_tensors, open_checkpoint, write_checkpoint
from griffinlm.recursive import Recursion, write_recursive

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "depthwise.py"


def test_every_way_of_batching_writes_the_same_number_of_tokens_and_exits_save_loops(
    tiny_model_directory: Path, tmp_path: Path
):
    config = dataclasses.replace(open_checkpoint(tiny_model_directory).config, num_layers=6)
    write_checkpoint(config, initial_tensors(config, 0), tmp_path / "plain", "griffinlm", None, tiny_model_directory)
    write_recursive(open_checkpoint(tmp_path / "plain"), Recursion(2), tmp_path / "recursive")
    text = tmp_path / "text.txt"
    text.write_text("the hawk over the sea " * 900, encoding="utf-8")
    small = ("--threads", "1", "--rows", "3", "--qualities", "0", "1", "--tokens", "6", "--prompts-each", "2")
    command = [sys.executable, SCRIPT, tmp_path / "recursive", text, *small, "--repeats", "1"]
    command += ["--out", tmp_path / "results"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "results").iterdir()
    all_may, few_may = json.loads(file.read_text(encoding="utf-8"))["runs"]
    assert 1 <= all_may["loops_a_token"] <= few_may["loops_a_token"] <= 2
    assert all_may["loops_a_token"] < 2
    for one in (all_may, few_may):
        assert one["loops"] == 2
        assert sum(sum(rows) for rows in one["rows_by_loop"]) == pytest.approx(one["loops_a_token"] * one["tokens"])
        assert one["steps"]["depth"] <= one["steps"]["sequence"] <= one["steps"]["lock_step"]
        assert one["largest_gain"] >= 1
        assert one["gain"] > 0
