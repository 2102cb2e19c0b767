"""The same block of several loops at once: every shared matrix is read once for rows at different depths."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from griffinlm.config import LOW_RANK
from griffinlm.kernels.block_diagonal.strided import block_diagonal
from griffinlm.kernels.gated_gelu.blocked import gated_gelu
from griffinlm.model.blocks import (
    AttentionBlock,
    AttentionState,
    BlockState,
    Layout,
    RecurrentBlock,
    RecurrentState,
    ResidualBlock,
)
from griffinlm.model.layers import BlockDiagonalLinear, GatedMLP
from griffinlm.model.low_rank import RowTerms, add_terms


class Segment(NamedTuple):
    """The rows of a call that stand at one depth; they lie side by side."""

    layout: Layout
    """Of these rows alone."""
    num_tokens: int
    """Real tokens of all of them."""
    low_rank: Sequence[RowTerms]
    """Terms of some of those tokens, by their places among them."""


class Segments(NamedTuple):
    """The rows of a call by depth. Their real tokens, packed [N, D], go through the products without padding."""

    parts: Sequence[Segment]
    layout: Layout
    """Of all rows."""
    places: Tensor | None
    """[N], where the real tokens stand in rows [B T]; None where there is no padding."""

    def pack(self, rows: Tensor) -> Tensor:
        """[N, D] of [B, T, D]."""
        flat = rows.flatten(0, 1)
        return flat if self.places is None else flat[self.places]

    def unpack(self, packed: Tensor) -> Tensor:
        """[B, T, D] of [N, D], zeros for padding."""
        shape = *self.layout.positions.shape, packed.shape[1]
        if self.places is None:
            return packed.view(shape)
        return packed.new_zeros(shape[0] * shape[1], shape[2]).index_copy(0, self.places, packed).view(shape)

    def split(self, packed: Tensor) -> Sequence[Tensor]:
        """The packed tokens of each segment."""
        return packed.split([part.num_tokens for part in self.parts])

    def split_rows(self, rows: Tensor) -> Sequence[Tensor]:
        """The rows of each segment."""
        return rows.split([len(part.layout.num_before) for part in self.parts])

    def each(self, layers: Sequence[nn.Module], packed: Tensor) -> Tensor:
        """Every segment's tokens through its own layer."""
        return torch.cat([layer(part) for layer, part in zip(layers, self.split(packed), strict=True)])

    def product(self, layers: Sequence[Any], packed: Tensor) -> Tensor:
        """Every segment's tokens through its own linear or gate, whose matrix is one for all; biases and terms are not.

        W x for all tokens, then + b + up (down x) in each segment.
        """
        first, parts = layers[0], []
        if isinstance(first, BlockDiagonalLinear):
            y = block_diagonal(packed, first.weight, torch.zeros_like(first.bias))
        else:
            y = nn.functional.linear(packed, first.weight)
        for layer, segment, x, own in zip(layers, self.parts, self.split(packed), self.split(y), strict=True):
            assert layer.weight is first.weight
            if layer.bias is not None:
                own = own + layer.bias.flatten()
            if hasattr(layer, LOW_RANK.removeprefix(".")):
                own = own + layer.low_rank(x)
            parts.append(add_terms(own, layer, x, segment.low_rank))
        return torch.cat(parts)


def run_together(
    blocks: Sequence[ResidualBlock], x: Tensor, segments: Segments, state: BlockState
) -> tuple[Tensor, BlockState]:
    """What each block computes on the rows of its segment, up to rounding.

    Args:
        blocks: of one kind and with the same matrices, one a segment.
        x: packed [N, D].
        state: of all rows.

    Returns:
        packed [N, D], and the state of all rows after their tokens.
    """
    if len(blocks) == 1:
        rows, after = blocks[0](segments.unpack(x), segments.layout, state)
        return segments.pack(rows), after
    normed = segments.each([block.temporal_norm for block in blocks], x)
    if isinstance(state, RecurrentState):
        mixed, after = _recurrent([block.recurrent for block in blocks], normed, segments, state)
    else:
        mixed, after = _attention([block.attention for block in blocks], normed, segments, state)
    x = x + mixed
    normed = segments.each([block.mlp_norm for block in blocks], x)
    return x + _mlp([block.mlp for block in blocks], normed, segments), after


def _recurrent(
    blocks: Sequence[RecurrentBlock], x: Tensor, segments: Segments, state: RecurrentState
) -> tuple[Tensor, RecurrentState]:
    gate = segments.product([block.linear_y for block in blocks], x)
    u = segments.unpack(segments.product([block.linear_x for block in blocks], x))
    layouts = [part.layout for part in segments.parts]
    given = zip(blocks, layouts, *map(segments.split_rows, (u, state.convolution)), strict=True)
    u, tails = _joined([block.conv(part, at.positions, tail, at.lengths) for block, at, part, tail in given])
    packed = segments.pack(u)
    gates = [
        segments.unpack(segments.product(layers, packed))
        for layers in ([b.rg_lru.input_gate for b in blocks], [b.rg_lru.recurrence_gate for b in blocks])
    ]
    given = zip(blocks, layouts, *map(segments.split_rows, (u, *gates, state.hidden)), strict=True)
    y, hidden = _joined(
        [block.rg_lru(part, own, at.reset, before, at.lengths) for block, at, part, *own, before in given]
    )
    out = segments.product([block.linear_out for block in blocks], gated_gelu(gate, segments.pack(y)))
    return out, RecurrentState(hidden, tails)


def _attention(
    blocks: Sequence[AttentionBlock], x: Tensor, segments: Segments, state: AttentionState
) -> tuple[Tensor, AttentionState]:
    query, key, value = (
        segments.unpack(segments.product(layers, x))
        for layers in ([b.query for b in blocks], [b.key for b in blocks], [b.value for b in blocks])
    )
    # No parameter stands between the products, so all rows are one call.
    query, key = blocks[0].rotated(query, key, segments.layout)
    out, after = blocks[0].mix(query, key, value, segments.layout, state)
    return segments.product([block.output for block in blocks], segments.pack(out)), after


def _mlp(mlps: Sequence[GatedMLP], x: Tensor, segments: Segments) -> Tensor:
    gate = segments.product([mlp.gate for mlp in mlps], x)
    up = segments.product([mlp.up for mlp in mlps], x)
    return segments.product([mlp.down for mlp in mlps], gated_gelu(gate, up))


def _joined(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    one, other = zip(*pairs, strict=True)
    return torch.cat(one), torch.cat(other)
