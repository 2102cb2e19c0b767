"""What a decoder computes of one token a row between two reads of its matrices: the definitions of the fused kernels.

A block is five of these, or six with attention's two. What stands between them is rounded to the type of x.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from griffinlm.kernels.block_diagonal.reference import block_diagonal
from griffinlm.kernels.gated_gelu.reference import gated_gelu
from griffinlm.kernels.linear_scan.reference import rg_lru
from griffinlm.kernels.rms_norm.reference import rms_norm
from griffinlm.kernels.rotation.reference import rotate
from griffinlm.kernels.short_conv.reference import short_conv
from griffinlm.kernels.soft_cap.reference import soft_cap as capped


class Norm(NamedTuple):
    """A root mean square normalisation in front of a product; see `kernels.rms_norm.reference`."""

    scale: Tensor
    epsilon: float


class Linear(NamedTuple):
    """x -> x W^T + b."""

    weight: Tensor
    """[N, K]; of a block-diagonal layer [h, K / h, N / h], as in `kernels.block_diagonal.reference`."""
    bias: Tensor | None
    """[N]; of a block-diagonal layer [h, N / h]."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.weight, self.bias)


def linear(
    x: Tensor,
    layer: Linear,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    soft_cap: float | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """residual + layer(norm(x)), or cap * tanh(layer(norm(x)) / cap).

    Args:
        x: [B, K]. residual: [B, N].
        dtype: of the result, that of x if not given.

    Returns:
        [B, N].
    """
    out = layer(_normed(x, norm))
    if residual is not None:
        out = residual + out
    if soft_cap is not None:
        out = capped(out, soft_cap)
    return out.to(dtype or x.dtype)


def gated_hidden(x: Tensor, norm: Norm, gate: Linear, up: Linear) -> Tensor:
    """gelu(gate(norm(x))) * up(norm(x)), the hidden numbers [B, N] of a gated MLP over x [B, K]."""
    normed = _normed(x, norm)
    return gated_gelu(gate(normed), up(normed))


def recurrent_inputs(
    x: Tensor,
    norm: Norm,
    into: Linear,
    gate: Linear,
    taps: Linear,
    tails: Tensor,
    slots: Tensor,
    positions: Tensor,
) -> tuple[Tensor, Tensor]:
    """conv(into(norm(x))) and gelu(gate(norm(x))), [B, L] each: what enters a recurrence, and its gate.

    Args:
        x: [B, K].
        taps: weight [C, L] and bias [L] of `kernels.short_conv.reference`.
        tails: [X, C-1, L], the last inputs of the convolution of all slots, changed in place.
        slots: [B], the slot of each row, no two equal but for rows at position -1, whose slot gets numbers without
            meaning.
        positions: [B], the token's place in its document.
    """
    assert taps.bias is not None
    normed = _normed(x, norm)
    read = into(normed)[:, None]
    u, after = short_conv(read, taps.weight, taps.bias, positions[:, None], tails[slots].to(x.dtype))
    tails[slots] = after.to(tails.dtype)
    return u[:, 0], torch.nn.functional.gelu(gate(normed), approximate="tanh")


def recurrent_outputs(
    u: Tensor,
    gate: Tensor,
    input_gate: Linear,
    recurrence_gate: Linear,
    a_param: Tensor,
    hidden: Tensor,
    slots: Tensor,
    positions: Tensor,
) -> Tensor:
    """gate * rg_lru(u), [B, L], with both gates' block-diagonal products.

    Args:
        u, gate: [B, L]. a_param: [L].
        hidden: [X, L], h of all slots, changed in place; slots, positions: as in `recurrent_inputs`.
    """
    assert input_gate.bias is not None
    assert recurrence_gate.bias is not None
    into = block_diagonal(u[:, None], input_gate.weight, input_gate.bias)
    decay = block_diagonal(u[:, None], recurrence_gate.weight, recurrence_gate.bias)
    y, after = rg_lru(u[:, None], into, decay, a_param, positions[:, None] == 0, hidden[slots].to(u.dtype))
    hidden[slots] = after.to(hidden.dtype)
    return gate * y[:, 0]


def attention_inputs(
    x: Tensor, norm: Norm, query: Linear, key: Linear, value: Linear, positions: Tensor, frequencies: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [B, N, H] and keys [B, H] of norm(x) after RoPE, and values [B, H].

    Args:
        x: [B, K]. positions: [B].
        frequencies: [rotated_size / 2], the angle by which each pair of channels turns a token.
    """
    normed = _normed(x, norm)
    angle = positions[:, None, None, None] * frequencies
    cos, sin = torch.cos(angle), torch.sin(angle)
    head_size = len(key.weight)
    queries = query(normed).unflatten(-1, (-1, head_size))[:, None]
    keys = key(normed)[:, None, None]
    return rotate(queries, cos, sin)[:, 0], rotate(keys, cos, sin)[:, 0, 0], value(normed)


def _normed(x: Tensor, norm: Norm | None) -> Tensor:
    return x if norm is None else rms_norm(x, norm.scale, norm.epsilon)
