"""The small random models of `small_models` behind the transformers face, and rows to read with them."""

import numpy as np
import torch
from small_models import random_model
from torch import Tensor

from griffinlm.config import AttentionConfig, ModelConfig, RecurrentConfig
from griffinlm.hf import GriffinConfig, GriffinForCausalLM, GriffinForSequenceClassification
from griffinlm.model.griffin import Griffin
from griffinlm.presets import GRIFFIN_PATTERN, bfloat16_sqrt

PUBLISHED = ModelConfig(
    vocab_size=61,
    width=24,
    num_layers=5,
    block_pattern=GRIFFIN_PATTERN,
    mlp_hidden=16,
    recurrent=RecurrentConfig(width=36, num_gate_blocks=2),
    attention=AttentionConfig(num_heads=2, head_size=12, window_tokens=8),
    embedding_scale=bfloat16_sqrt(24),
    logit_soft_cap=5.0,
)
"""A model that RecurrentGemma's published form can express."""
GEMMA = ModelConfig(
    vocab_size=61,
    width=24,
    num_layers=3,
    block_pattern=("global_attention",),
    mlp_hidden=40,
    attention=AttentionConfig(num_heads=4, head_size=8, rope_fraction=1.0),
    use_bias=False,
    embedding_scale=24**0.5,
)
"""A model that Gemma's published form can express."""
OURS = ModelConfig(
    vocab_size=47,
    width=20,
    num_layers=4,
    block_pattern=("recurrent", "global_attention", "local_attention"),
    mlp_hidden=28,
    recurrent=RecurrentConfig(width=33, num_gate_blocks=3),
    attention=AttentionConfig(num_heads=3, head_size=8, window_tokens=5),
)
"""A model that only our form can express."""
CONFIGS = {"published": PUBLISHED, "gemma": GEMMA, "ours": OURS}


def causal_lm(model: Griffin, **fields: object) -> GriffinForCausalLM:
    """The face of a model, with the same weights, in evaluation mode; `fields` are those of the configuration."""
    face = GriffinForCausalLM(GriffinConfig.from_model_config(model.config, **fields))
    face.model.load_state_dict(model.state_dict())
    return face.to(model.embedding.weight.dtype).eval()


def random_face(config: ModelConfig, seed: int = 0, **fields: object) -> GriffinForCausalLM:
    return causal_lm(random_model(config, seed), **fields)


def random_classifier(config: ModelConfig, **fields: object) -> GriffinForSequenceClassification:
    face = GriffinForSequenceClassification(GriffinConfig.from_model_config(config, **fields))
    face.model.load_state_dict(random_model(config, 0).state_dict())
    return face.eval()


def random_rows(config: ModelConfig, lengths: list[int], seed: int = 0) -> list[Tensor]:
    """Rows [1, T] of random tokens, none of them 0."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, config.vocab_size, (1, length), generator=generator) for length in lengths]


def padded(rows: list[Tensor], side: str, extra: int = 0) -> tuple[Tensor, Tensor]:
    """Rows [1, t] side by side [B, T], padded with 0 on the left, the right, or anywhere (`mixed`); and the mask."""
    num_columns = max(row.shape[1] for row in rows) + extra
    tokens = torch.zeros(len(rows), num_columns, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    random = np.random.default_rng(0)
    for index, row in enumerate(rows):
        length = row.shape[1]
        places = {
            "left": np.arange(num_columns - length, num_columns),
            "right": np.arange(length),
            "mixed": np.sort(random.permutation(num_columns)[:length]),
        }[side]
        tokens[index, places] = row[0]
        mask[index, places] = 1
    return tokens, mask
