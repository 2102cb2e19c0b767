"""One token a slot as a function over tensors that stay where they are; nothing in it waits for the device.

This is the body of a CUDA graph. It runs without one too, on any device.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from griffinlm.config import ModelConfig
from griffinlm.kernels.local_attention.operator import decode_attention
from griffinlm.kernels.local_attention.reference import attention, write_ring
from griffinlm.model import fused_step
from griffinlm.model.blocks import AttentionState, Layout, RecurrentState, ResidualBlock
from griffinlm.model.griffin import Griffin, GriffinState, loop_layouts


class TokenReader(NamedTuple):
    """One way to compute a step."""

    block: Callable[[ResidualBlock, Tensor, Layout, RecurrentState | AttentionState, Tensor], Tensor]
    """What `read_block` computes."""
    logits: Callable[[Griffin, Tensor], Tensor]
    """What `Griffin.logits` computes of one token a row."""


def read_token(
    model: Griffin, state: GriffinState, slots: Tensor, tokens: Tensor, reader: TokenReader | None = None
) -> Tensor:
    """Reads one token of each slot and changes the state where it lies.

    A slot whose `num_tokens` is -1 stands still: its row computes finite numbers without meaning and is read by nobody.
    The caller has checked tokens and capacity.

    Args:
        state: of all slots, slot by slot; changed in place.
        slots: [B] int64, no two equal but for slots that stand still.
        tokens: [B] int64.
        reader: what computes it, `choose_reader`'s if not given.

    Returns:
        float32 logits [B, V].
    """
    before = state.num_tokens.index_select(0, slots)
    positions = before[:, None]
    layout = Layout(positions, positions == 0, before.clamp(min=0), None)
    num_skipped = None if state.num_skipped is None else state.num_skipped.index_select(0, slots)
    layouts = loop_layouts(model.config, layout, num_skipped)
    x = model.embedding(tokens)[:, None] * model.config.embedding_scale
    reader = reader or choose_reader(model.config, x)
    for step, block in zip(model.config.plan(), model.layers, strict=True):
        assert isinstance(block, ResidualBlock)
        x = reader.block(block, x, layouts[model.config.loop_of(step.depth)], state.blocks[step.depth], slots)
    state.num_tokens.index_copy_(0, slots, torch.where(before >= 0, before + 1, before))
    return reader.logits(model, x)[:, 0]


def read_block(
    block: ResidualBlock, x: Tensor, layout: Layout, state: RecurrentState | AttentionState, slots: Tensor
) -> Tensor:
    """A block over one token of each slot, x [B, 1, D], whose state it changes where it lies."""
    if isinstance(state, RecurrentState):
        x, after = block(x, layout, RecurrentState(*(kept.index_select(0, slots) for kept in state)))
        for kept, new in zip(state, after, strict=True):
            kept.index_copy_(0, slots, new.to(kept.dtype))
        return x
    query, key, value = block.attention.project(block.temporal_norm(x), layout)
    step = decode_attention if query.is_cuda else _decode_attention
    out = step(query[:, 0], key[:, 0], value[:, 0], state.keys, state.values, slots, layout.positions[:, 0])
    return block.join(x, block.attention.output(out.flatten(-2)[:, None]), layout)


PLAIN = TokenReader(read_block, Griffin.logits)
"""The model's own blocks, operator by operator."""
FUSED = TokenReader(fused_step.read_block, fused_step.logits)
"""Few kernels a block, where `fused_step.is_fused` says so."""


@cache
def compiled_reader(backend: str = "inductor") -> TokenReader:
    """Blocks made into kernels by torch.compile: once for a kind of block and one row, once for more rows."""
    return PLAIN._replace(block=torch.compile(read_block, fullgraph=True, backend=backend))


def choose_reader(config: ModelConfig, x: Tensor) -> TokenReader:
    """The fastest way to compute a step over rows x [B, 1, D] where they are."""
    return FUSED if x.is_cuda and fused_step.is_fused(config, x.dtype, len(x)) else PLAIN


def _decode_attention(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor
) -> Tensor:
    """`decode_attention` where there is no GPU: rings are gathered, read and written back."""
    key, value = (new.to(keys.dtype).to(query.dtype)[:, None] for new in (key, value))
    rings = [ring.index_select(0, slots) for ring in (keys, values)]
    here, num_before = positions[:, None], positions.clamp(min=0)
    # The window of a ring is its size; that of global attention is never full, so every place is seen.
    out = attention(query[:, None], key, value, here, keys.shape[1], (rings[0], rings[1], num_before))
    for ring, gathered, new in ((keys, rings[0], key), (values, rings[1], value)):
        ring.index_copy_(0, slots, write_ring(gathered, new, here))
    return out[:, 0]
