"""Two processes that share the rows of a step, and one that reads them all: the same run."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("trl", reason="needs the extra train")

from griffinlm.checkpoint import open_checkpoint
from griffinlm.checkpoint.adapter import read_low_rank
from griffinlm.train.sft import tune

from .test_distributed import torchrun
from .tuning import tuning_run


def losses(output: Path) -> list[float]:
    entries = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


@pytest.mark.slow
def test_two_processes_tune_as_one_does(tmp_path: Path, tiny_model_directory: Path):
    run = tuning_run(tmp_path, tiny_model_directory)
    one = run("lora={}", output="one")
    tune(one)
    two = run("lora={}", output="two").output
    griffin = str(Path(sys.executable).parent / "griffin")
    options = ["--config", str(tmp_path / "tune.toml"), "--set", "lora={}"]
    done = torchrun(2, ["--no-python", griffin, "train", "sft", *options])
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{two / 'adapter'}\n"
    assert losses(two) == pytest.approx(losses(one.output), rel=1e-4)
    config = open_checkpoint(tiny_model_directory).config
    expected, found = (read_low_rank(output / "adapter", config).terms for output in (one.output, two))
    for name, term in found.items():
        # By norm: Adam divides a gradient by its own size, so that an entry whose gradient is near 0 has few digits.
        difference = np.linalg.norm(term.up - expected[name].up)
        assert difference <= 1e-4 * np.linalg.norm(expected[name].up), name
