"""Windows, documents and rings as a mask of FlexAttention, which reads only blocks of keys that a query can see."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import config as compiler_config
from torch._dynamo import maybe_mark_dynamic
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad

BLOCK_TOKENS = 128
SMALLEST_QUERY_TOKENS = 2 * BLOCK_TOKENS
"""The compiler takes one block, as any size of 1, for a case of its own."""
MOST_FORMS = 64
"""Compiled at most in a process. A form serves every length and number of rows, but one row is a form of its own, and
so are training and every number of heads."""

Ring = tuple[Tensor, Tensor, Tensor]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    window_tokens: int | None,
    ring: Ring | None = None,
) -> Tensor:
    """What `reference.attention` computes. On a CPU every score is computed and there is no gradient."""
    if query.is_cuda and not torch.compiler.is_compiling():
        return attend_compiled(query, key, value, positions, window_tokens, ring)
    return _attend(query, *with_ring(key, value, ring), positions, window_tokens)


def attend_compiled(
    query: Tensor, key: Tensor, value: Tensor, positions: Tensor, window_tokens: int | None, ring: Ring | None
) -> Tensor:
    """FlexAttention is a kernel only when it is compiled: here for lengths in whole blocks, the last ones padding."""
    num_tokens = query.shape[1]
    missing = max(-num_tokens % BLOCK_TOKENS, SMALLEST_QUERY_TOKENS - num_tokens)
    if missing:
        query = pad(query, (0, 0, 0, 0, 0, missing))
        key, value = (pad(new, (0, 0, 0, missing)) for new in (key, value))
        positions = pad(positions, (0, missing), value=-1)
    arguments = query, *with_ring(key, value, ring), positions
    for tensor in arguments:
        maybe_mark_dynamic(tensor, [0, 1])
    # Past the limit torch would compute every score, without a word; a whole graph or none is an error instead.
    with compiler_config.patch(recompile_limit=MOST_FORMS):
        return _compiled()(*arguments, window_tokens)[:, :num_tokens]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, places: Tensor, positions: Tensor, window_tokens: int | None
) -> Tensor:
    out: Any = flex_attention(
        query.transpose(1, 2),
        key[:, None],
        value[:, None],
        block_mask=block_mask(positions, places, window_tokens),
        enable_gqa=True,
        # The kernel for few queries takes numbers of heads that are powers of two only.
        kernel_options={"FORCE_USE_FLEX_ATTENTION": True},
    )
    return out.transpose(1, 2)


def with_ring(key: Tensor, value: Tensor, ring: Ring | None) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values [B, S + T, H] of ring and chunk, and the place of each on the axis of the chunk [B, S + T].

    A ring token's place is negative: its position minus the tokens read before.
    """
    if ring is None:
        return key, value, torch.arange(key.shape[1], device=key.device).repeat(key.shape[0], 1)
    ring_keys, ring_values, num_before = ring
    num_places = ring_keys.shape[1]
    key, value = (
        torch.cat([ring_keys.to(key.dtype), key], dim=1),
        torch.cat([ring_values.to(value.dtype), value], dim=1),
    )
    # Not joined too: the mask is computed inside FlexAttention's kernel, where torch's compiler can join nothing.
    index = torch.arange(key.shape[1], device=key.device)
    newest = num_before[:, None] - 1
    before = -1 - (newest - index) % num_places
    return key, value, torch.where(index < num_places, before, index - num_places)


def block_mask(positions: Tensor, places: Tensor, window_tokens: int | None) -> BlockMask:
    """Query t sees the key d places before it exactly where d <= min(positions[t], window_tokens).

    Args:
        positions: [B, T], -1 for padding.
        places: [B, S + T], place of each key on the axis of the queries; the last T are 0..T-1.
    """
    reach = positions.clamp(min=0)
    if window_tokens is not None:
        reach = reach.clamp(max=window_tokens)

    def is_visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = query - places[row, key]
        return (distance >= 0) & (distance <= reach[row, query])

    num_tokens, num_keys = positions.shape[1], places.shape[1]
    first, last = visible_blocks(num_tokens, num_keys, window_tokens, positions.device)
    num_blocks = -(-num_keys // BLOCK_TOKENS)
    indices = (first[:, None] + torch.arange(num_blocks, device=positions.device)) % num_blocks
    return BlockMask.from_kv_blocks(
        (last - first + 1).to(torch.int32)[None, None],
        indices.to(torch.int32)[None, None],
        BLOCK_SIZE=BLOCK_TOKENS,
        mask_mod=is_visible,
        seq_lengths=(num_tokens, num_keys),
    )


def visible_blocks(
    num_tokens: int, num_keys: int, window_tokens: int | None, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """First and last block of keys [Q] that each block of queries may see, whatever the documents.

    The keys of a ring stand before those of the chunk. Queries within the window of the chunk's beginning see the
    ring, in any order; the others see no key more than the window before the first of them.
    """
    start = torch.arange(0, num_tokens, BLOCK_TOKENS, device=device)
    num_before = num_keys - num_tokens
    last = (num_before + (start + BLOCK_TOKENS).clamp(max=num_tokens) - 1) // BLOCK_TOKENS
    if window_tokens is None:
        return torch.zeros_like(last), last
    first = (num_before + start - window_tokens) // BLOCK_TOKENS
    return torch.where(start < window_tokens, 0, first), last


@cache
def _compiled() -> Any:
    return torch.compile(_attend, fullgraph=True)
