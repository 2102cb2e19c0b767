"""A token of each slot read by few kernels: five a recurrent block, six an attention block, one for the logits."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from griffinlm.config import AttentionConfig, ModelConfig
from griffinlm.kernels.device import require_triton
from griffinlm.kernels.local_attention.operator import decode_attention
from griffinlm.kernels.token_step.reference import Linear, Norm
from griffinlm.model.blocks import AttentionState, Layout, RecurrentState, ResidualBlock
from griffinlm.model.griffin import Griffin
from griffinlm.model.layers import RMSNorm, rope_frequencies

MOST_ROWS = {torch.bfloat16: 32, torch.float32: 1}
"""Up to so many rows a step should be bound by memory, by count of bytes and operations; not measured."""


def is_fused(config: ModelConfig, dtype: torch.dtype, num_rows: int) -> bool:
    """Whether these kernels compute such a model's step: not where layers add low-rank terms of their own."""
    has_terms = config.recursion is not None and config.recursion.rank > 0
    return not has_terms and num_rows <= MOST_ROWS.get(dtype, 0)


def read_block(
    block: ResidualBlock, x: Tensor, layout: Layout, state: RecurrentState | AttentionState, slots: Tensor
) -> Tensor:
    """What `decoding.read_block` computes; what stands between two kernels is rounded to the type of x."""
    kernels, positions, x = _kernels(), layout.positions[:, 0].contiguous(), x[:, 0]
    norm = _norm(block.temporal_norm)
    if isinstance(state, RecurrentState):
        own = block.recurrent
        taps = Linear(own.conv.weight, own.conv.bias)
        into = (_linear(own.linear_x), _linear(own.linear_y), taps, state.convolution)
        u, gate = kernels.recurrent_inputs(x, norm, *into, slots, positions)
        gates = (_linear(own.rg_lru.input_gate), _linear(own.rg_lru.recurrence_gate))
        mixed = kernels.recurrent_outputs(u, gate, *gates, own.rg_lru.a_param, state.hidden, slots, positions)
        output = own.linear_out
    else:
        own = block.attention
        layers = (_linear(layer) for layer in (own.query, own.key, own.value))
        query, key, value = kernels.attention_inputs(x, norm, *layers, positions, _frequencies(own.config, x.device))
        mixed = decode_attention(query, key, value, *state, slots, positions).flatten(1)
        output = own.output
    x = kernels.linear(mixed, _linear(output), residual=x)
    hidden = kernels.gated_hidden(x, _norm(block.mlp_norm), _linear(block.mlp.gate), _linear(block.mlp.up))
    return kernels.linear(hidden, _linear(block.mlp.down), residual=x)[:, None]


def logits(model: Griffin, x: Tensor) -> Tensor:
    """float32 logits [B, 1, V] of what the blocks gave [B, 1, D]; nothing is rounded on the way to them."""
    head = Linear(model.embedding.weight, None)
    cap = model.config.logit_soft_cap
    return _kernels().linear(x[:, 0], head, _norm(model.final_norm), None, cap, torch.float32)[:, None]


def _norm(layer: RMSNorm) -> Norm:
    return Norm(layer.scale, layer.epsilon)


def _linear(layer: nn.Module) -> Linear:
    return Linear(layer.weight, layer.bias)  # pyright: ignore[reportArgumentType]


@cache
def _frequencies(config: AttentionConfig, device: torch.device) -> Tensor:
    """Kept: a graph reads them from where they are."""
    return rope_frequencies(config, device)


def _kernels() -> Any:
    """The module that launches the kernels, imported where it is needed: most machines have no Triton."""
    require_triton()
    from griffinlm.kernels.token_step import launch

    return launch
