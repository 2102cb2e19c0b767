"""Checkpoints are complete or absent: on a full disk, and under kill -9 at any moment."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs the extra train")

from griffinlm import GriffinError
from griffinlm.checkpoint import CheckpointError
from griffinlm.train.checkpoints import MANIFEST, Checkpoints, read_manifest
from griffinlm.train.errors import TrainError
from griffinlm.train.pretrain import pretrain

GRIFFIN = [sys.executable, "-c", "import sys; from griffinlm.cli.main import main; sys.exit(main())"]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_full_disk_is_one_error_and_the_last_checkpoint_stays(finished):
    weights = (finished.output / "model" / "model.safetensors").read_bytes()
    checkpoints = finished.output / "checkpoints"
    for path in (finished.output / "model", checkpoints / "step-4", checkpoints / "step-6"):
        shutil.rmtree(path)
    largest_shard = max(path.stat().st_size for path in checkpoints.rglob("*.distcp"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # What a full disk does to a write, done to files past half a shard.
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_shard // 2, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"cannot write .*step-4: File too large") as caught:
            pretrain(finished)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert names(checkpoints) == ["step-2"]
    read_manifest(checkpoints / "step-2")
    assert (pretrain(finished).model / "model.safetensors").read_bytes() == weights


def test_what_a_killed_writer_left_is_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    assert checkpoints.last() is None
    for name in ("step-3", ".step-4.0123.partial", "step-5.bak", "notes"):
        (tmp_path / name).mkdir()
    assert checkpoints.last() is None  # step-3 has no manifest
    for name in ("step-3", "step-20", ".step-4.0123.partial"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / MANIFEST).write_text("{}")
    assert checkpoints.last() == tmp_path / "step-20"


def test_what_a_killed_writer_left_goes_when_a_later_step_is_written(run):
    config = run()
    left = config.output / "checkpoints" / f".step-1.{'0' * 32}.partial"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    pretrain(config)
    assert names(left.parent) == ["step-2", "step-4", "step-6"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "cannot be read"),
        ("{}", "cannot be read"),
        ('{"format_version": 2, "files": {}}', "has format_version 2"),
        ('{"format_version": 1, "files": {"gone": "00"}}', "is damaged: gone differs"),
        ('{"format_version": 1, "files": 5}', "cannot be read"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, text, told):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(TrainError, match=re.escape(told)):
        read_manifest(tmp_path)


def test_a_checkpoint_without_a_shard_is_refused(finished):
    shutil.rmtree(finished.output / "model")
    next((finished.output / "checkpoints" / "step-6").rglob("*.distcp")).unlink()
    with pytest.raises(GriffinError, match="differs from its manifest"):
        pretrain(finished)


def start(config_file: Path, output: str) -> subprocess.Popen:
    command = [*GRIFFIN, "train", "pretrain", "--config", str(config_file), "--set", f"output={output}"]
    changes = ["checkpoints.every_steps=1", "stages.0.steps=60", "checkpoints.num_kept=2"]
    command += [word for change in changes for word in ("--set", change)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def last_step(output: Path) -> int:
    last = Checkpoints(output / "checkpoints", 2).last()
    return 0 if last is None else int(last.name.removeprefix("step-"))


@pytest.mark.slow
def test_a_run_killed_at_ten_random_moments_ends_with_the_bits_of_an_unbroken_one(run_file):
    """Every second run is killed a random number of steps on, at a random moment of the step."""
    unbroken = start(run_file, "unbroken")
    out, err = unbroken.communicate()
    assert unbroken.returncode == 0, err
    output, draw = run_file.parent / "broken", random.Random(0)
    for _ in range(10):
        reached = last_step(output) + draw.randrange(1, 5)
        process = start(run_file, "broken")
        while last_step(output) < reached and process.poll() is None:
            try:
                process.wait(draw.uniform(0.001, 0.05))
            except subprocess.TimeoutExpired:
                continue
        assert process.poll() is None, process.communicate()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        last = Checkpoints(output / "checkpoints", 2).last()
        assert last is not None
        read_manifest(last)
        assert json.loads((last / "trainer_state.json").read_text())["global_step"] == last_step(output)
    finished = start(run_file, "broken")
    out, err = finished.communicate()
    assert (finished.returncode, out) == (0, f"{output / 'model'}\n"), err
    weights = [(run_file.parent / name / "model" / "model.safetensors").read_bytes() for name in ("broken", "unbroken")]
    assert weights[0] == weights[1]
