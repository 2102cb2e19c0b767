"""Configurations that each format can hold, random weights for them, and comparison bit by bit."""

import dataclasses
import math
from collections.abc import Iterable

import ml_dtypes
import numpy as np

from griffinlm.checkpoint import Checkpoint
from griffinlm.config import AttentionConfig, BlockKind, ModelConfig, RecurrentConfig
from griffinlm.presets import bfloat16_sqrt

TYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

Tensors = dict[str, np.ndarray]


def griffin(pattern: Iterable[BlockKind], num_layers: int, lru_width: int = 40) -> ModelConfig:
    """A small model that Hugging Face and DeepMind can both express; every size is another number."""
    pattern = tuple(pattern)
    kinds = set(pattern[:num_layers])
    return ModelConfig(
        vocab_size=37,
        width=24,
        num_layers=num_layers,
        block_pattern=pattern,
        mlp_hidden=28,
        recurrent=RecurrentConfig(width=lru_width, num_gate_blocks=2) if "recurrent" in kinds else None,
        attention=AttentionConfig(num_heads=2, head_size=12, window_tokens=7) if "local_attention" in kinds else None,
        embedding_scale=bfloat16_sqrt(24),
        logit_soft_cap=30.0,
    )


GRIFFINS = {
    "ends in recurrent": griffin(("recurrent", "recurrent", "local_attention"), 5),
    "ends in attention": griffin(("recurrent", "recurrent", "local_attention"), 3),
    "square recurrent block": griffin(("recurrent", "local_attention"), 2, lru_width=24),
    "all recurrent": griffin(("recurrent",), 2),
    "all attention": griffin(("local_attention",), 2),
}
GEMMA = dataclasses.replace(
    ModelConfig.preset("tiny-gemma"), width=24, embedding_scale=math.sqrt(24), mlp_hidden=28, vocab_size=37
)


def random_tensors(config: ModelConfig, dtype: str = "float32") -> Tensors:
    """Normal values in every parameter, those that start at zero included; each parameter has its own."""
    random = np.random.default_rng(0)
    return {
        name: random.standard_normal(shape, np.float32).astype(TYPES[dtype])
        for name, shape in config.parameter_shapes().items()
    }


def assert_same_bits(checkpoint: Checkpoint, tensors: Tensors) -> None:
    assert list(checkpoint.config.parameter_shapes()) == list(tensors)
    for name, expected in tensors.items():
        found = checkpoint.tensor(name)
        assert found.dtype == expected.dtype, name
        assert found.shape == expected.shape, name
        assert found.tobytes() == expected.tobytes(), name
