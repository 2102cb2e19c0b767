"""Two processes that share the rows of a step, and one that reads them all: the same run."""

import json
import shutil
import subprocess
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
    """Of all steps, then of the held-out conversations."""
    entries = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [entry[name] for name in ("loss", "eval_loss") for entry in entries if name in entry]


def tune_in_two(config: Path, *changes: str) -> subprocess.CompletedProcess[str]:
    griffin = str(Path(sys.executable).parent / "griffin")
    options = [word for change in changes for word in ("--set", change)]
    done = torchrun(2, ["--no-python", griffin, "train", "sft", "--config", str(config), *options])
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_two_processes_tune_as_one_does(tmp_path: Path, tiny_model_directory: Path):
    run = tuning_run(tmp_path, tiny_model_directory)
    one = run("lora={}", output="one")
    tune(one)
    two = run("lora={}", output="two").output
    done = tune_in_two(tmp_path / "tune.toml", "lora={}")
    assert done.stdout == f"{two / 'adapter'}\n"
    assert losses(two) == pytest.approx(losses(one.output), rel=1e-4)
    config = open_checkpoint(tiny_model_directory).config
    expected, found = (read_low_rank(output / "adapter", config).terms for output in (one.output, two))
    for name, term in found.items():
        # By norm: Adam divides a gradient by its own size, so that an entry whose gradient is near 0 has few digits.
        difference = np.linalg.norm(term.up - expected[name].up)
        assert difference <= 1e-4 * np.linalg.norm(expected[name].up), name


@pytest.mark.slow
def test_rows_that_fill_no_step_count_in_two_processes_as_in_one(tmp_path: Path, tiny_model_directory: Path):
    run = tuning_run(tmp_path, tiny_model_directory)
    changes = ("data.packing=false", "sources.chat.max_rows=8", "data.held_out_share=0.3", "checkpoints.every_steps=3")
    one = run(*changes, output="one")
    figures = tune(one).figures
    assert figures["num_conversations"] % one.batch_rows, "every step would be whole"
    assert figures["num_held_out"] % 2, "both processes would have as many held-out rows"
    two = run(*changes, output="two").output
    done = tune_in_two(tmp_path / "tune.toml", *changes)
    assert done.stdout == f"{two / 'model'}\n"
    assert len(losses(two)) == 7
    assert losses(two) == pytest.approx(losses(one.output), rel=1e-4)
    shutil.copytree(two / "checkpoints" / "step-3", tmp_path / "cut" / "checkpoints" / "step-3")
    run(output="cut")
    tune_in_two(tmp_path / "tune.toml", *changes)
    weights = Path("model") / "model.safetensors"
    assert (tmp_path / "cut" / weights).read_bytes() == (two / weights).read_bytes()
