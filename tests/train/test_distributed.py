"""Two processes that share the parameters, and one that has them all: the same run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra train")

from griffinlm.checkpoint import open_checkpoint
from griffinlm.train.errors import TrainError
from griffinlm.train.pretrain import pretrain
from griffinlm.train.trainer import training_arguments

LOSS_TOLERANCE = 1e-5


def torchrun(num_processes: int, program: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *program], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def griffin_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command `griffin` as a file that torchrun starts."""
    path = tmp_path_factory.mktemp("script") / "griffin.py"
    path.write_text("import sys\nfrom griffinlm.cli.main import main\nsys.exit(main())\n")
    return path


def train_in_two(script: Path, run_file: Path, output: str, *changes: str) -> Path:
    """Trains in two processes; gives the output directory."""
    words = [word for change in (f"output={output}", *changes) for word in ("--set", change)]
    done = torchrun(2, [str(script), "train", "pretrain", "--config", str(run_file), *words])
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{run_file.parent / output / 'model'}\n"
    return run_file.parent / output


def losses(output: Path) -> list[float]:
    entries = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [
        value for entry in entries for name, value in entry.items() if name == "loss" or name.endswith("bits_per_byte")
    ]


def from_checkpoint(source: Path, step: int, output: Path) -> None:
    name = f"checkpoints/step-{step}"
    shutil.copytree(source / name, output / name)


def assert_same_run(found: Path, expected: Path) -> None:
    assert losses(found) == pytest.approx(losses(expected), rel=LOSS_TOLERANCE)
    weights = dict(open_checkpoint(expected / "model").tensors())
    for name, values in open_checkpoint(found / "model").tensors():
        np.testing.assert_allclose(values, weights[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_two_processes_train_as_one_does_which_goes_on_from_their_checkpoint(griffin_script, finished, run_file, run):
    assert len(losses(finished.output)) == 8
    two = train_in_two(griffin_script, run_file, "two", "rows_per_device=2")
    assert_same_run(two, finished.output)
    shards = {path.name for path in (two / "checkpoints" / "step-2" / "tensors").glob("*.distcp")}
    assert shards == {"__0_0.distcp", "__1_0.distcp"}
    from_checkpoint(two, 4, run_file.parent / "one")
    assert_same_run(pretrain(run("output=one")).model.parent, finished.output)


@pytest.mark.slow
def test_two_processes_train_layers_that_share_parameters_as_one_does(griffin_script, run_file, run):
    changes = ("model.num_layers=7", "model.recursion={num_loops = 2, rank = 2}")
    one = pretrain(run("output=one", *changes)).model.parent
    assert_same_run(train_in_two(griffin_script, run_file, "two", *changes), one)


@pytest.mark.slow
def test_two_processes_go_on_from_the_checkpoint_of_one(griffin_script, finished, run_file):
    from_checkpoint(finished.output, 4, run_file.parent / "two")
    assert_same_run(train_in_two(griffin_script, run_file, "two"), finished.output)


SHARDED = """
import torch, torch.distributed as dist
from torch.distributed.tensor import DTensor
from griffinlm.checkpoint import initial_tensors
from griffinlm.config import ModelConfig
from griffinlm.train.sharding import build_objective, whole_tensors

dist.init_process_group("gloo")
config = ModelConfig.preset("tiny-griffin")
objective = build_objective(config, initial_tensors(config, 0), 16, torch.device("cpu"), "bfloat16")
parameters = dict(objective.griffin.named_parameters())
assert all(isinstance(parameter, DTensor) for parameter in parameters.values())
assert all(parameter.dtype == torch.float32 for parameter in parameters.values())
held = sum(parameter.to_local().numel() for parameter in parameters.values())
assert held <= 0.55 * config.num_parameters, held
expected = dict(initial_tensors(config, 0))
for name, values in whole_tensors(objective.griffin):
    assert (values == expected[name]).all(), name
tokens = torch.arange(12)[None]
loss = objective(tokens, tokens, tokens)["loss"]
loss.backward()
# What the root gathered is one unit: final norm and the embedding, which is the head.
groups = objective._get_fsdp_state()._fsdp_param_group.fsdp_params
assert {p._param_fqn for p in groups} == {"griffin.embedding.weight", "griffin.final_norm.scale"}
assert all(p.sharded_param.grad.dtype == torch.float32 for p in groups)
dist.destroy_process_group()
"""


def test_two_processes_hold_half_of_the_parameters_each(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(SHARDED)
    done = torchrun(2, [str(program)])
    assert done.returncode == 0, done.stderr


def test_rows_that_do_not_divide_over_the_processes_are_refused(run):
    told = r"batch_rows is 9; it must be a multiple of rows_per_device \(4\) times the number of processes \(2\)"
    with pytest.raises(TrainError, match=told):
        training_arguments(run("batch_rows=9"), 2)
    with pytest.raises(TrainError, match="it must be a multiple"):
        training_arguments(run("batch_rows=1"), 2)
