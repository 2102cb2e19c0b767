"""Our model gives what the originals gave when `make_golden` recorded them, from the checkpoints they wrote."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from griffinlm.checkpoint import Checkpoint, open_checkpoint, write_checkpoint

from .golden import Golden, GoldenReader
from .models import GriffinReader, griffin
from .reading import assert_agreement

DEEPMIND = ["deepmind-recurrentgemma", "deepmind-griffin"]
HUGGINGFACE = ["transformers-recurrentgemma", "transformers-gemma"]


def read_checkpoint(golden: Golden) -> Checkpoint:
    """What the original wrote; only DeepMind's file does not say which model it is."""
    checkpoint = open_checkpoint(golden.checkpoint, golden.config if golden.name in DEEPMIND else None)
    assert checkpoint.config == golden.config
    return checkpoint


@pytest.mark.parametrize("name", [*DEEPMIND, *HUGGINGFACE])
def test_logits_and_states_equal_the_recorded_original(name: str):
    golden = Golden(name)
    model = griffin(golden.config, read_checkpoint(golden).tensors())
    for conversation in golden.conversations:
        capacity = None
        if golden.config.needs_capacity:
            capacity = golden.tensors[f"{conversation}/0/memory/layers.0.keys"].shape[1]
        theirs = GoldenReader(golden, conversation)
        assert_agreement(GriffinReader(model, capacity), theirs, golden.calls(conversation))


@pytest.mark.parametrize("name", DEEPMIND)
def test_writing_gives_back_the_tensors_of_deepmind(name: str, tmp_path: Path):
    golden = Golden(name)
    write_checkpoint(golden.config, read_checkpoint(golden).tensors(), tmp_path / "model", "deepmind")
    written = torch.load(tmp_path / "model" / "griffin.pt", weights_only=True)
    assert_same_tensors(written, torch.load(golden.checkpoint, weights_only=True))


@pytest.mark.parametrize("name", HUGGINGFACE)
def test_writing_gives_back_the_tensors_of_transformers(name: str, tmp_path: Path):
    golden = Golden(name)
    write_checkpoint(golden.config, read_checkpoint(golden).tensors(), tmp_path / "model", "huggingface")
    written = load_file(tmp_path / "model" / "model.safetensors")
    assert_same_tensors(written, load_file(golden.checkpoint / "model.safetensors"))


def assert_same_tensors(written: dict[str, torch.Tensor], original: dict[str, torch.Tensor]) -> None:
    assert written.keys() == original.keys()
    for name, tensor in original.items():
        assert written[name].dtype == tensor.dtype, name
        assert torch.equal(written[name], tensor), name
