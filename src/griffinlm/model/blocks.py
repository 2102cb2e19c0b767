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
from griffinlm.kernels.short_conv.reference import next_tail
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
    inputs: list[tuple[Tensor, ...]] | None = None
    """Where given, every temporal block adds the numbers that its state follows from without another product."""


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
        read = u
        u, tail = self.conv(read, layout.positions, tail, layout.lengths)
        gates = self.rg_lru.gates(u, layout.low_rank)
        if layout.inputs is not None:
            layout.inputs.append((read, u, *gates))
        u, hidden = self.rg_lru(u, gates, layout.reset, hidden, layout.lengths)
        return product(self.linear_out, gated_gelu(gate, u), layout.low_rank), RecurrentState(hidden, tail)

    def after(self, inputs: Sequence[Tensor], layout: Layout, state: RecurrentState) -> RecurrentState:
        """The state after the first `layout.lengths` tokens of a call, of what the call has put into `inputs`."""
        read, u, *gates = inputs
        tail = next_tail(read, state.convolution, layout.lengths)
        _, hidden = self.rg_lru(u, gates, layout.reset, state.hidden, layout.lengths)
        return RecurrentState(hidden, tail)


class AttentionBlock(nn.Module):
    """Multi-query attention with RoPE, local (a window) or global (the whole document, up to the state's capacity)."""

    def __init__(self, config: ModelConfig, kind: BlockKind) -> None:
        super().__init__()
        assert config.attention is not None
        self.config = config.attention
        self.window_tokens = config.attention.window_of(kind)
        inner = config.attention.num_heads * config.attention.head_size
        self.query = nn.Linear(config.width, inner, bias=False)
        self.key = nn.Linear(config.width, config.attention.head_size, bias=False)
        self.value = nn.Linear(config.width, config.attention.head_size, bias=False)
        self.output = nn.Linear(inner, config.width, bias=config.use_bias)

    def project(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, T, N, H] and keys [B, T, H] after RoPE, and values [B, T, H]."""
        query, key, value = (product(layer, x, layout.low_rank) for layer in (self.query, self.key, self.value))
        return *self.rotated(query, key, layout), value

    def rotated(self, query: Tensor, key: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Queries [B, T, N, H] and keys [B, T, H] after RoPE, of products [B, T, N H] and [B, T, H]."""
        cos, sin = rotation(layout.positions, self.config)
        query = rotate(query.unflatten(-1, (self.config.num_heads, self.config.head_size)), cos, sin)
        return query, rotate(key[:, :, None], cos, sin)[:, :, 0]

    def forward(self, x: Tensor, layout: Layout, state: AttentionState | None) -> tuple[Tensor, AttentionState]:
        query, key, value = self.project(x, layout)
        out, after = self.mix(query, key, value, layout, state)
        return product(self.output, out, layout.low_rank), after

    def mix(
        self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, state: AttentionState | None
    ) -> tuple[Tensor, AttentionState]:
        """What each token sees of what was read, [B, T, N H], and the state after; arguments as `project` gives."""
        ring = None
        if state is not None:
            ring = (state.keys, state.values, layout.num_before)
            # What the ring will hold is what this call sees too, or a chunk would differ from its tokens one by one.
            key = key.to(state.keys.dtype).to(key.dtype)
            value = value.to(state.values.dtype).to(value.dtype)
        if layout.inputs is not None:
            layout.inputs.append((key, value))
        out = attention(query, key, value, layout.positions, self.window_tokens, ring)
        if state is None:
            num_slots = key.shape[1] if self.window_tokens is None else self.window_tokens
            empty = key.new_zeros(key.shape[0], num_slots, self.config.head_size)
            state = AttentionState(empty, empty)
        keys = write_ring(state.keys, key, layout.positions)
        values = write_ring(state.values, value, layout.positions)
        return out.flatten(-2), AttentionState(keys, values)

    def after(self, inputs: Sequence[Tensor], layout: Layout, state: AttentionState) -> AttentionState:
        """The state after the tokens of a call that have a position, of what the call has put into `inputs`."""
        rings = zip(state, inputs, strict=True)
        return AttentionState(*(write_ring(ring, new, layout.positions) for ring, new in rings))


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

    def after(self, inputs: Sequence[Tensor], layout: Layout, state: BlockState) -> BlockState:
        """The temporal block's `after`."""
        if isinstance(state, RecurrentState):
            return self.recurrent.after(inputs, layout, state)
        return self.attention.after(inputs, layout, state)

    def join(self, x: Tensor, mixed: Tensor, layout: Layout) -> Tensor:
        """What the block gives where its temporal part gave `mixed`."""
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x), layout.low_rank)
