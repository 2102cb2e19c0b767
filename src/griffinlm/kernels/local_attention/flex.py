"""Windows, documents and rings as a mask of FlexAttention, which reads only blocks of keys that a query can see."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from griffinlm.kernels.local_attention.reference import ring_positions

BLOCK_TOKENS = 128


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    window_tokens: int | None,
    ring: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """What `reference.attention` computes. On a CPU every score is computed and there is no gradient."""
    key, value, places = with_ring(key, value, ring)
    mask = block_mask(positions, places, window_tokens)
    is_inside = torch.compiler.is_compiling() or not query.is_cuda
    out: Any = (flex_attention if is_inside else _compiled())(
        query.transpose(1, 2), key[:, None], value[:, None], block_mask=mask, enable_gqa=True
    )
    return out.transpose(1, 2)


def with_ring(key: Tensor, value: Tensor, ring: tuple[Tensor, Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values [B, S + T, H] of ring and chunk, and the place of each on the axis of the chunk [B, S + T].

    A ring token's place is negative: its position minus the tokens read before.
    """
    places = torch.arange(key.shape[1], device=key.device).expand(key.shape[0], -1)
    if ring is None:
        return key, value, places
    ring_keys, ring_values, num_before = ring
    before = ring_positions(num_before, ring_keys.shape[1]) - num_before[:, None]
    key, value = (
        torch.cat([ring_keys.to(key.dtype), key], dim=1),
        torch.cat([ring_values.to(value.dtype), value], dim=1),
    )
    return key, value, torch.cat([before, places], dim=1)


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
    """FlexAttention is a kernel only when it is compiled."""
    return torch.compile(flex_attention)
