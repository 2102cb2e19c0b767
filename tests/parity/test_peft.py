"""What PEFT computes, on transformers' models and on ours, is what ours computes with the directory that it saved."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs tests/parity/requirements.txt")
pytest.importorskip("peft", reason="needs tests/parity/requirements.txt")

import peft
import torch
from torch import nn

import griffinlm
from griffinlm.checkpoint import write_checkpoint
from griffinlm.config import ModelConfig

from . import models
from .conversations import prefill
from .huggingface import load_original
from .models import griffin, random_tensors
from .reading import BOUND, deviation

pytestmark = pytest.mark.parity

LINEARS = [
    "gate_proj",
    "up_proj",
    "down_proj",
    "linear_x",
    "linear_y",
    "linear_out",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
]
GATES = ["rg_lru.input_gate_weight", "rg_lru.recurrent_gate_weight"]
PATTERNS = {
    "rank_pattern": {"down_proj": 4, r"layers\.1\.mlp_block\.up_proj": 1, "rg_lru.input_gate_weight": 2},
    "alpha_pattern": {"q_proj": 1, "rg_lru.recurrent_gate_weight": 2},
}
ADAPTERS = {
    "every linear": {"target_modules": LINEARS},
    "every linear and gate": {"target_modules": LINEARS, "target_parameters": GATES},
    "both gates": {"target_modules": [], "target_parameters": GATES},
    "one gate": {"target_modules": ["up_proj"], "target_parameters": GATES[:1]},
    "rank-stabilized": {"target_modules": LINEARS, "use_rslora": True},
    "patterns": {"target_modules": LINEARS, "target_parameters": GATES, **PATTERNS},
    "linears as parameters": {"target_modules": [], "target_parameters": ["up_proj.weight", "down_proj.weight"]},
}
CONFIGS = {"recurrentgemma": models.RECURRENTGEMMA, "gemma": models.GEMMA}
CASES = [
    *(("recurrentgemma", adapter) for adapter in ADAPTERS),
    *(("gemma", adapter) for adapter in ("every linear", "rank-stabilized", "linears as parameters")),
]


def wrapped(model: nn.Module, **changes):
    """The model with an adapter of random numbers."""
    torch.manual_seed(0)
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 5, "init_lora_weights": False, **changes})
    adapted = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    return adapted


def ours(directory: Path, adapter: Path, engine: str, tokens: torch.Tensor) -> torch.Tensor:
    model = griffinlm.load(directory, engine=engine, adapters={"a": adapter}).with_adapter("a")
    state = model.new_state(len(tokens), 64) if model.config.needs_capacity else None
    logits, _ = model.forward(tokens.numpy(), state)
    assert logits is not None
    return torch.from_numpy(np.array(logits))


def assert_same(config: ModelConfig, directory: Path, tmp_path: Path, model: nn.Module, theirs) -> None:
    tokens = prefill([[19]], config.vocab_size, seed=3).tokens
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = theirs(tokens)
    for engine in ("torch", "onnx"):
        assert deviation(ours(directory, tmp_path / "adapter", engine, tokens), expected) <= BOUND, engine


@pytest.mark.parametrize(("config_name", "adapter"), CASES)
def test_directory_saved_by_peft_computes_what_peft_computes(config_name: str, adapter: str, tmp_path: Path):
    config, changes = CONFIGS[config_name], ADAPTERS[adapter]
    write_checkpoint(config, random_tensors(config, seed=1), tmp_path / "model", "huggingface")
    model = wrapped(load_original(config, tmp_path / "model"), task_type="CAUSAL_LM", **changes)
    assert_same(
        config, tmp_path / "model", tmp_path, model, lambda tokens: model(input_ids=tokens, use_cache=False).logits
    )


class Face(nn.Module):
    """Our model as an attribute of another, as a face of it for other libraries has it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(tokens)[0]


def test_peft_on_our_own_model_computes_what_its_directory_does(tmp_path: Path):
    """Every linear by its module, both gates as parameters."""
    config = models.RECURRENTGEMMA
    tensors = list(random_tensors(config, seed=1))
    write_checkpoint(config, tensors, tmp_path / "model", "griffinlm")
    linears = ["gate", "up", "down", "linear_x", "linear_y", "linear_out", "query", "key", "value", "output"]
    gates = ["rg_lru.input_gate.weight", "rg_lru.recurrence_gate.weight"]
    model = wrapped(Face(griffin(config, tensors)), target_modules=linears, target_parameters=gates)
    assert_same(config, tmp_path / "model", tmp_path, model, model)
