"""The temporal blocks with their states, and the residual block around them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from griffinlm.config import BlockKind, ModelConfig
from griffinlm.kernels.gated_gelu.blocked import gated_gelu
from griffinlm.kernels.local_attention.operator import attention
from griffinlm.kernels.local_attention.reference import write_ring
from griffinlm.kernels.rotation.in_place import rotate
from griffinlm.model.layers import GatedMLP, RgLru, RMSNorm, ShortConv, rotation
from griffinlm.model.low_rank import RowTerms, product


class RecurrentState(NamedTuple):
    """What a recurrent block remembers."""

    hidden: Tensor
    """h [B, L], float32 in every precision."""
    convolution: Tensor
    """The last K-1 inputs of the convolution, [B, K-1, L], activation type."""


class AttentionState(NamedTuple):
    """What an attention block remembers."""

    keys: Tensor
    """[B, S, H] after RoPE; slot = position mod S. S is the window, or the capacity where attention is global."""
    values: Tensor
    """[B, S, H]."""


BlockState = RecurrentState | AttentionState


class Layout(NamedTuple):
    """Where the tokens of a call stand; made once a call, read by every block."""

    positions: Tensor
    """[B, T], place in the document; -1 for padding, which stands only at the end of a row."""
    reset: Tensor
    """[B, T], whether a document starts here."""
    num_before: Tensor
    """[B], tokens of the row's document read before this call."""
    lengths: Tensor | None
    """[B], real tokens in each row; None where all are."""
    low_rank: Sequence[RowTerms] = ()
    """Terms that some rows add to the products of linear layers."""


class RecurrentBlock(nn.Module):
    """linear_out(gelu(linear_y(x)) * rg_lru(conv(linear_x(x))))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.recurrent is not None
        self.width = config.recurrent.width
        self.linear_y = nn.Linear(config.width, self.width)
        self.linear_x = nn.Linear(config.width, self.width)
        self.conv = ShortConv(config.recurrent)
        self.rg_lru = RgLru(config.recurrent)
        self.linear_out = nn.Linear(self.width, config.width)

    def forward(self, x: Tensor, layout: Layout, state: RecurrentState | None) -> tuple[Tensor, RecurrentState]:
        tail = None if state is None else state.convolution
        hidden = x.new_zeros(x.shape[0], self.width, dtype=torch.float32) if state is None else state.hidden
        gate = product(self.linear_y, x, layout.low_rank)
        u = product(self.linear_x, x, layout.low_rank)
        u, tail = self.conv(u, layout.positions, tail, layout.lengths)
        u, hidden = self.rg_lru(u, layout.reset, hidden, layout.lengths, layout.low_rank)
        return product(self.linear_out, gated_gelu(gate, u), layout.low_rank), RecurrentState(hidden, tail)


class AttentionBlock(nn.Module):
    """Multi-query attention with RoPE, local (a window) or global (the whole document, up to the state's capacity)."""

    def __init__(self, config: ModelConfig, kind: BlockKind) -> None:
        super().__init__()
        assert config.attention is not None
        self.config = config.attention
        self.window_tokens = config.attention.window_tokens if kind == "local_attention" else None
        inner = config.attention.num_heads * config.attention.head_size
        self.query = nn.Linear(config.width, inner, bias=False)
        self.key = nn.Linear(config.width, config.attention.head_size, bias=False)
        self.value = nn.Linear(config.width, config.attention.head_size, bias=False)
        self.output = nn.Linear(inner, config.width, bias=config.use_bias)

    def project(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, T, N, H] and keys [B, T, H] after RoPE, and values [B, T, H]."""
        cos, sin = rotation(layout.positions, self.config)
        query = product(self.query, x, layout.low_rank).unflatten(-1, (self.config.num_heads, self.config.head_size))
        query = rotate(query, cos, sin)
        key = rotate(product(self.key, x, layout.low_rank)[:, :, None], cos, sin)[:, :, 0]
        return query, key, product(self.value, x, layout.low_rank)

    def forward(self, x: Tensor, layout: Layout, state: AttentionState | None) -> tuple[Tensor, AttentionState]:
        query, key, value = self.project(x, layout)
        ring = None
        if state is not None:
            ring = (state.keys, state.values, layout.num_before)
            # What the ring will hold is what this call sees too, or a chunk would differ from its tokens one by one.
            key = key.to(state.keys.dtype).to(key.dtype)
            value = value.to(state.values.dtype).to(value.dtype)
        out = attention(query, key, value, layout.positions, self.window_tokens, ring)
        if state is None:
            num_slots = x.shape[1] if self.window_tokens is None else self.window_tokens
            empty = key.new_zeros(x.shape[0], num_slots, self.config.head_size)
            state = AttentionState(empty, empty)
        keys = write_ring(state.keys, key, layout.positions)
        values = write_ring(state.values, value, layout.positions)
        return product(self.output, out.flatten(-2), layout.low_rank), AttentionState(keys, values)


class ResidualBlock(nn.Module):
    """r = x + temporal(norm(x)); out = r + mlp(norm(r))."""

    def __init__(self, config: ModelConfig, kind: BlockKind) -> None:
        super().__init__()
        self.temporal_norm = RMSNorm(config.width, config.norm_epsilon)
        if kind == "recurrent":
            self.recurrent = RecurrentBlock(config)
        else:
            self.attention = AttentionBlock(config, kind)
        self.kind = kind
        self.mlp_norm = RMSNorm(config.width, config.norm_epsilon)
        self.mlp = GatedMLP(config)

    def forward(self, x: Tensor, layout: Layout, state: BlockState | None) -> tuple[Tensor, BlockState]:
        temporal = self.recurrent if self.kind == "recurrent" else self.attention
        mixed, after = temporal(self.temporal_norm(x), layout, state)
        return self.join(x, mixed, layout), after

    def join(self, x: Tensor, mixed: Tensor, layout: Layout) -> Tensor:
        """What the block gives where its temporal part gave `mixed`."""
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x), layout.low_rank)
