"""DeepMind's `.pt`: only tensors, never code, and never a configuration from shapes."""

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from griffinlm.checkpoint import CheckpointError, open_checkpoint, write_checkpoint
from griffinlm.config import ModelConfig

from .models import GEMMA, GRIFFINS, assert_same_bits, random_tensors

torch = pytest.importorskip("torch")

CONFIG = GRIFFINS["ends in attention"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_checkpoint(CONFIG, random_tensors(CONFIG, "bfloat16").items(), tmp_path / "model", "deepmind")
    return tmp_path / "model"


def test_the_names_and_shapes_are_those_of_deepmind(directory: Path):
    table = torch.load(directory / "griffin.pt", weights_only=True)
    elsewhere = ("blocks.1.", "blocks.2.")
    assert {name: tuple(value.shape) for name, value in table.items() if not name.startswith(elsewhere)} == {
        "final_norm.scale": (24,),
        "blocks.0.temporal_pre_norm.scale": (24,),
        "blocks.0.channel_pre_norm.scale": (24,),
        "blocks.0.mlp_block.ffw_up.w": (2, 24, 28),
        "blocks.0.mlp_block.ffw_up.b": (2, 1, 1, 28),
        "blocks.0.mlp_block.ffw_down.weight": (24, 28),
        "blocks.0.mlp_block.ffw_down.bias": (24,),
        "blocks.0.recurrent_block.linear_x.weight": (40, 24),
        "blocks.0.recurrent_block.linear_x.bias": (40,),
        "blocks.0.recurrent_block.linear_y.weight": (40, 24),
        "blocks.0.recurrent_block.linear_y.bias": (40,),
        "blocks.0.recurrent_block.linear_out.weight": (24, 40),
        "blocks.0.recurrent_block.linear_out.bias": (24,),
        "blocks.0.recurrent_block.conv_1d.w": (4, 40),
        "blocks.0.recurrent_block.conv_1d.b": (40,),
        "blocks.0.recurrent_block.rg_lru.a_param": (40,),
        "blocks.0.recurrent_block.rg_lru.input_gate.w": (2, 20, 20),
        "blocks.0.recurrent_block.rg_lru.input_gate.b": (2, 20),
        "blocks.0.recurrent_block.rg_lru.a_gate.w": (2, 20, 20),
        "blocks.0.recurrent_block.rg_lru.a_gate.b": (2, 20),
        "embedder.input_embedding": (37, 24),
    }
    assert {name for name in table if name.startswith("blocks.2.attention_block.")} == {
        f"blocks.2.attention_block.{name}"
        for name in ("proj_q.weight", "proj_k.weight", "proj_v.weight", "proj_final.weight", "proj_final.bias")
    }


def test_gate_comes_before_up_and_both_are_transposed(directory: Path):
    table = torch.load(directory / "griffin.pt", weights_only=True)
    tensors = random_tensors(CONFIG, "bfloat16")
    stacked = table["blocks.1.mlp_block.ffw_up.w"].float().numpy()
    np.testing.assert_array_equal(stacked[0].T, tensors["layers.1.mlp.gate.weight"].astype(np.float32))
    np.testing.assert_array_equal(stacked[1].T, tensors["layers.1.mlp.up.weight"].astype(np.float32))


def test_the_directory_and_the_file_in_it_are_one_checkpoint(directory: Path):
    assert_same_bits(open_checkpoint(directory), random_tensors(CONFIG, "bfloat16"))
    assert open_checkpoint(directory / "griffin.pt").digest() == open_checkpoint(directory).digest()


@pytest.mark.parametrize("prefix", ["", "params."])
def test_a_file_alone_needs_a_configuration_and_takes_either_prefix(directory: Path, tmp_path: Path, prefix: str):
    table = torch.load(directory / "griffin.pt", weights_only=True)
    (tmp_path / "alone").mkdir()
    file = tmp_path / "alone" / "2b.pt"
    torch.save({prefix + name: value for name, value in table.items()}, file)
    with pytest.raises(CheckpointError, match="does not say which model it is") as caught:
        open_checkpoint(file)
    assert caught.value.hint == "give --preset or --config FILE"
    assert_same_bits(open_checkpoint(file, CONFIG), random_tensors(CONFIG, "bfloat16"))
    assert_same_bits(open_checkpoint(file.parent, CONFIG), random_tensors(CONFIG, "bfloat16"))


def test_a_configuration_that_does_not_fit_lists_every_fault(directory: Path):
    (directory / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"faults: blocks\.3\..* is missing, expected \[") as caught:
        open_checkpoint(directory, dataclasses.replace(CONFIG, num_layers=4))
    assert len(caught.value.faults) == 19


class Surprise:
    def __reduce__(self) -> tuple:
        return print, ("code from the file ran",)


@pytest.mark.parametrize(
    "content",
    [
        {"embedder.input_embedding": Surprise()},
        Surprise(),
        [torch.zeros(2)],
        {1: torch.zeros(2)},
        {"params": {"final_norm.scale": torch.zeros(24)}},
        {"final_norm.scale": torch.zeros(24).to_sparse()},
        {"final_norm.scale": 3},
    ],
)
def test_a_file_of_anything_but_named_tensors_is_refused(content: object, tmp_path: Path, capsys):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt") as caught:
        open_checkpoint(tmp_path / "x.pt", CONFIG)
    assert str(caught.value).isprintable()
    assert capsys.readouterr().out == ""


def test_a_bare_pickle_and_a_truncated_file_are_refused(directory: Path):
    file = directory / "griffin.pt"
    content = file.read_bytes()
    for damaged in (pickle.dumps(Surprise()), content[: len(content) // 2], b"", content[:-100]):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"griffin\.pt"):
            open_checkpoint(directory)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float64, torch.bool])
def test_another_element_type_is_refused(directory: Path, dtype: Any):
    table = torch.load(directory / "griffin.pt", weights_only=True)
    torch.save({**table, "final_norm.scale": torch.ones(24, dtype=dtype)}, directory / "griffin.pt")
    with pytest.raises(CheckpointError, match=rf"final_norm.scale is \[24\] {str(dtype)[6:]}, expected \[24\] float32"):
        open_checkpoint(directory)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GEMMA, "global attention"),
        (ModelConfig.preset("tiny-griffin"), "4 gate blocks beside 2 heads"),
        (dataclasses.replace(CONFIG, embedding_scale=2.0), "an embedding_scale of 2.0"),
        (dataclasses.replace(CONFIG, norm_epsilon=1e-5), "a norm_epsilon of 1e-05"),
    ],
)
def test_what_deepmind_cannot_express_is_not_written(config: ModelConfig, message: str, tmp_path: Path):
    with pytest.raises(CheckpointError, match=message):
        write_checkpoint(config, random_tensors(config).items(), tmp_path / "model", "deepmind")
    assert not list(tmp_path.iterdir())


def test_several_files_in_a_directory_are_ambiguous(directory: Path):
    (directory / "other.pt").write_bytes((directory / "griffin.pt").read_bytes())
    with pytest.raises(CheckpointError, match=r"several \.pt files: griffin\.pt, other\.pt"):
        open_checkpoint(directory)


NO_TORCH = """
import sys
sys.modules["torch"] = None
from griffinlm.checkpoint import CheckpointError, open_checkpoint
try:
    open_checkpoint(sys.argv[1])
except CheckpointError as error:
    print(error, error.hint, sep="|")
"""


def test_without_torch_the_hint_says_what_to_install(directory: Path):
    done = subprocess.run([sys.executable, "-c", NO_TORCH, str(directory)], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("which is not installed|pip install griffinlm[torch]")


def test_importing_the_room_imports_no_optional_package():
    program = (
        "import sys, griffinlm.checkpoint; print({'torch', 'huggingface_hub', 'tensorstore', 'jax'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
