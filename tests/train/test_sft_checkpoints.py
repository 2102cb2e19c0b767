"""Checkpoints of tuning are complete or absent: resumed, under kill -9, on a full disk, and never another run's."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra train")

import torch
from safetensors import safe_open
from torch.distributed.checkpoint.filesystem import FileSystemReader
from transformers import Trainer

from griffinlm import GriffinError
from griffinlm.checkpoint import CheckpointError
from griffinlm.train.checkpoints import Checkpoints, read_manifest
from griffinlm.train.errors import TrainError
from griffinlm.train.merge import merge
from griffinlm.train.sft import tune
from griffinlm.train.tuning_config import TuningConfig

from .tuning import Tuned, tuning_run

GRIFFIN = [sys.executable, "-c", "import sys; from griffinlm.cli.main import main; sys.exit(main())"]
KINDS = {
    "weights": ("quantization_aware=int4",),
    "low-rank": ("lora.dropout=0.1",),
    "gates": ("lora.gates=true",),
    "prompt": ("prompt={}",),
    "state": ("state={}",),
}


@pytest.fixture
def run(tmp_path: Path, tiny_model_directory: Path) -> Tuned:
    return tuning_run(tmp_path, tiny_model_directory)


@contextlib.contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """What a full disk does to a write, done to files past so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def content(result: Path) -> dict[str, bytes]:
    """The weights that a run came to."""
    files = [result] if result.is_file() else sorted(result.glob("*.safetensors"))
    return {file.name: file.read_bytes() for file in files}


def content_names(adapter: Path) -> list[str]:
    with safe_open(adapter / "adapter_model.safetensors", framework="numpy") as file:
        return list(file.keys())


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_equals_uninterrupted_to_the_bit(run: Tuned, kind: str):
    changes = (*KINDS[kind], "checkpoints.every_steps=3")
    whole = tune(run(*changes, output="whole"))
    cut = run(*changes, output="cut")
    kept = Path("checkpoints") / "step-3"
    shutil.copytree(whole.result.parent / kept, cut.output / kept)
    resumed = tune(cut)
    assert (resumed.step, whole.step) == (6, 6)
    assert content(resumed.result) == content(whole.result)


def test_a_checkpoint_holds_what_is_trained_and_nothing_else(run: Tuned):
    config = run("lora={}", "checkpoints.every_steps=6")
    trained = content_names(tune(config).result)
    metadata = FileSystemReader(config.output / "checkpoints" / "step-6" / "tensors").read_metadata()
    stored = {name for name in metadata.state_dict_metadata if name.startswith("model.")}
    assert len(stored) == len(trained) > 0
    assert all("lora_" in name for name in stored)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["optimizer.learning_rate=0.02"], "another optimizer"),
        (["steps=7"], "another steps"),
        (["lora.rank=3"], "another lora"),
        (["data.row_tokens=95", "seed=1"], "another row_tokens, another seed"),
        (["sources.chat.max_rows=50"], "another conversations"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(run: Tuned, changes: list[str], told: str):
    first = ("lora={}", "checkpoints.every_steps=6")
    shutil.rmtree(tune(run(*first)).result)
    with pytest.raises(TrainError, match=rf"step-6 belongs to a run with .*{told}"):
        tune(run(*first, *changes))


def test_how_rows_are_read_and_told_may_change_on_the_way(run: Tuned):
    first = ("lora={}", "checkpoints.every_steps=3")
    config = run(*first)
    shutil.rmtree(tune(config).result)
    shutil.rmtree(config.output / "checkpoints" / "step-6")
    assert tune(run(*first, "rows_per_device=2", "log_every_steps=2", "checkpoints.every_steps=2")).step == 6


def test_a_damaged_checkpoint_is_refused_and_named(run: Tuned):
    config = run("lora={}", "checkpoints.every_steps=3")
    expected = content(tune(config).result)
    shutil.rmtree(config.output / "adapter")
    state = config.output / "checkpoints" / "step-6" / "trainer_state.json"
    state.write_bytes(state.read_bytes()[:-40])
    with pytest.raises(TrainError, match=r"step-6 is damaged: trainer_state\.json differs"):
        tune(config)
    shutil.rmtree(state.parent)
    assert content(tune(config).result) == expected


def test_a_gradient_that_is_no_number_ends_the_run_before_it_is_saved(run: Tuned, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Trainer, "_clip_grad_norm", lambda self, model: torch.tensor(float("inf")))
    config = run("lora={}", "log_every_steps=100", "checkpoints.every_steps=1")
    with pytest.raises(TrainError, match="the norm of the gradient is inf at step 1"):
        tune(config)
    assert not list(config.output.glob("checkpoints/step-*"))


def test_a_full_disk_is_one_error_and_the_last_checkpoint_stays(run: Tuned):
    config = run("checkpoints.every_steps=3")
    expected = content(tune(config).result)
    checkpoints = config.output / "checkpoints"
    shutil.rmtree(config.output / "model")
    shutil.rmtree(checkpoints / "step-6")
    largest_shard = max(path.stat().st_size for path in checkpoints.rglob("*.distcp"))
    with largest_file(largest_shard // 2), pytest.raises(CheckpointError, match=r"cannot write .*step-6: File") as told:
        tune(config)
    assert "\n" not in str(told.value)
    assert names(checkpoints) == ["step-3"]
    read_manifest(checkpoints / "step-3")
    assert content(tune(config).result) == expected


@pytest.mark.parametrize("kind", ["weights", "low-rank", "prompt", "state"])
def test_a_full_disk_at_the_end_is_one_error_and_leaves_no_result(run: Tuned, kind: str):
    config = run(*KINDS[kind], "steps=1")
    expected = content(tune(config).result)
    sizes = [len(data) for data in expected.values()]
    shutil.rmtree(config.output)
    with largest_file(max(sizes) // 2), pytest.raises(GriffinError, match=r"cannot (be )?writ") as told:
        tune(config)
    assert "\n" not in str(told.value)
    assert {"model", "adapter", "state.safetensors"}.isdisjoint(names(config.output))
    assert not [name for name in names(config.output) if name.endswith(".partial")]
    assert content(tune(config).result) == expected


def test_a_full_disk_while_merging_is_one_error_and_leaves_no_model(run: Tuned, tmp_path: Path):
    adapter = tune(run("lora={}", "steps=1")).result
    with largest_file(10_000), pytest.raises(CheckpointError, match=r"cannot write .*merged: .*File too large"):
        merge(run().model, adapter, tmp_path / "merged")
    assert not [name for name in names(tmp_path) if "merged" in name]


def test_an_output_that_is_a_file_is_one_error(run: Tuned, tmp_path: Path):
    (tmp_path / "taken").touch()
    for change in ("lora={}", "state={}"):
        with pytest.raises(GriffinError, match="taken"):
            tune(run(change, output="taken"))


def start(config: TuningConfig, file: Path) -> subprocess.Popen:
    changes = ["lora={}", "checkpoints.every_steps=1", "checkpoints.num_kept=2", "steps=40", f"output={config.output}"]
    options = [word for change in changes for word in ("--set", change)]
    return subprocess.Popen(
        [*GRIFFIN, "train", "sft", "--config", str(file), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def last_step(output: Path) -> int:
    last = Checkpoints(output / "checkpoints", 2).last()
    return 0 if last is None else int(last.name.removeprefix("step-"))


@pytest.mark.slow
def test_a_run_killed_at_ten_random_moments_ends_with_the_bits_of_an_unbroken_one(run: Tuned, tmp_path: Path):
    """Killed a random number of steps on, at a random moment of a step, the writing of its checkpoint included."""
    file, draw = tmp_path / "tune.toml", random.Random(0)
    whole, broken = run(output="whole"), run(output="broken")
    unbroken = start(whole, file)
    _, err = unbroken.communicate()
    assert unbroken.returncode == 0, err
    for _ in range(10):
        reached = last_step(broken.output) + draw.randrange(0, 4)
        process = start(broken, file)
        while last_step(broken.output) < reached and process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(draw.uniform(0.001, 0.05))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.0, 0.2))
        assert process.poll() is None, process.communicate()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        last = Checkpoints(broken.output / "checkpoints", 2).last()
        if last is not None:
            read_manifest(last)
            assert json.loads((last / "trainer_state.json").read_text())["global_step"] == last_step(broken.output)
    finished = start(broken, file)
    out, err = finished.communicate()
    assert (finished.returncode, out) == (0, f"{broken.output / 'adapter'}\n"), err
    assert content(broken.output / "adapter") == content(whole.output / "adapter")
