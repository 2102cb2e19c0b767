"""Attention of one new token a row over its ring, on a GPU; the same kernel writes the token into the ring.

The ring is split among programs. Each gives a partial softmax, a second kernel joins them. Keys stand in the ring
after RoPE, so their order does not matter. Heads are rows of a matrix product, at least 16.

Not handled here: more than one token a row, gradients, float64.
"""

# Triton compiles what pyright reads as Python.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportAttributeAccessIssue=false

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS_A_PROCESSOR = 2
SMALLEST_SPLIT, MOST_SPLITS = 64, 32
NOTHING = tl.constexpr(-1.0e30)
"""Maximum of no scores: finite, so that its difference from another is a number."""


class Tile(NamedTuple):
    """How a program goes over its part of a ring."""

    num_keys: int
    """Keys at a time, a power of two."""
    num_warps: int
    num_stages: int


# No register is spilled at 256 channels a head.
TILE_OF_16_BITS = Tile(64, num_warps=4, num_stages=2)
TILE_OF_FLOAT32 = Tile(32, num_warps=8, num_stages=1)


@triton.jit
def split_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    keys_ptr,
    values_ptr,
    slots_ptr,
    positions_ptr,
    sums_ptr,
    maxima_ptr,
    totals_ptr,
    scale,
    num_heads,
    head_size,
    num_places,
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """SPLIT places of one row's ring: maximum and sum of e^score [B, P, N], and the sum of e^score value [B, P, N, H].

    The program that has the new token's place counts the new token too and writes it there. At a position past the
    ring's size the place holds the oldest key that the token sees, so it is read first.
    """
    split, row = tl.program_id(0), tl.program_id(1)
    slot, position = tl.load(slots_ptr + row).to(tl.int64), tl.load(positions_ptr + row)
    heads, channels = tl.arange(0, HEADS), tl.arange(0, HEAD)
    in_head = channels < head_size
    query_mask = (heads < num_heads)[:, None] & in_head[None, :]
    query_at = (row * num_heads + heads)[:, None] * head_size + channels[None, :]
    query = tl.load(query_ptr + query_at, mask=query_mask, other=0.0)
    ring = slot * num_places * head_size
    maximum = tl.full([HEADS], NOTHING, tl.float32)
    total = tl.full([HEADS], 0.0, tl.float32)
    out = tl.full([HEADS, HEAD], 0.0, tl.float32)
    for block in tl.range(0, SPLIT // BLOCK):
        places = split * SPLIT + block * BLOCK + tl.arange(0, BLOCK)
        is_visible = (places < num_places) & (places < position)
        at = ring + places[:, None] * head_size + channels[None, :]
        mask = is_visible[:, None] & in_head[None, :]
        keys = tl.load(keys_ptr + at, mask=mask, other=0.0).to(query.dtype)
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where(is_visible[None, :], scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
        weights = tl.exp(scores - new_maximum[:, None])
        shrink = tl.exp(maximum - new_maximum)
        total = total * shrink + tl.sum(weights, axis=1)
        values = tl.load(values_ptr + at, mask=mask, other=0.0).to(query.dtype)
        out = out * shrink[:, None] + tl.dot(weights.to(query.dtype), values, input_precision="ieee")
        maximum = new_maximum
    place = position % num_places
    if (position >= 0) & (place // SPLIT == split):
        # What the ring will hold is what is seen now.
        key = tl.load(key_ptr + row * head_size + channels, mask=in_head, other=0.0).to(keys_ptr.dtype.element_ty)
        value = tl.load(value_ptr + row * head_size + channels, mask=in_head, other=0.0).to(values_ptr.dtype.element_ty)
        score = tl.sum(query.to(tl.float32) * key.to(tl.float32)[None, :], axis=1) * scale
        new_maximum = tl.maximum(maximum, score)
        weight, shrink = tl.exp(score - new_maximum), tl.exp(maximum - new_maximum)
        total = total * shrink + weight
        out = out * shrink[:, None] + weight[:, None] * value.to(tl.float32)[None, :]
        maximum = new_maximum
        # All threads have read the place before one of them writes it.
        tl.debug_barrier()
        tl.store(keys_ptr + ring + place * head_size + channels, key, mask=in_head)
        tl.store(values_ptr + ring + place * head_size + channels, value, mask=in_head)
    part = (row * tl.num_programs(0) + split) * num_heads + heads
    tl.store(maxima_ptr + part, maximum, mask=heads < num_heads)
    tl.store(totals_ptr + part, total, mask=heads < num_heads)
    tl.store(sums_ptr + part[:, None] * head_size + channels[None, :], out, mask=query_mask)


@triton.jit
def join_kernel(
    sums_ptr,
    maxima_ptr,
    totals_ptr,
    out_ptr,
    num_splits,
    num_heads,
    head_size,
    SPLITS: tl.constexpr,
    HEAD: tl.constexpr,
):
    """One head of one row: the partial softmaxes [B, P, N] as one, out [B, N, H]; zero where nothing was seen."""
    head, row = tl.program_id(0), tl.program_id(1)
    splits, channels = tl.arange(0, SPLITS), tl.arange(0, HEAD)
    part = (row * num_splits + splits) * num_heads + head
    maxima = tl.load(maxima_ptr + part, mask=splits < num_splits, other=NOTHING)
    shares = tl.exp(maxima - tl.max(maxima, axis=0))
    total = tl.sum(shares * tl.load(totals_ptr + part, mask=splits < num_splits, other=0.0), axis=0)
    mask = (splits < num_splits)[:, None] & (channels < head_size)[None, :]
    sums = tl.load(sums_ptr + part[:, None] * head_size + channels[None, :], mask=mask, other=0.0)
    out = tl.sum(shares[:, None] * sums, axis=0) / tl.where(total > 0.0, total, 1.0)
    at = (row * num_heads + head) * head_size + channels
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=channels < head_size)


def choose_split(num_rows: int, num_places: int, num_processors: int) -> int:
    """Places of a program, a power of two: enough programs to fill the device, at most `MOST_SPLITS` a row."""
    wanted = min(triton.cdiv(PROGRAMS_A_PROCESSOR * num_processors, num_rows), MOST_SPLITS)
    return max(SMALLEST_SPLIT, triton.next_power_of_2(triton.cdiv(num_places, wanted)))


def decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    positions: Tensor,
    split_places: int,
) -> Tensor:
    """`operator.decode_attention`, everything contiguous; `split_places` from `choose_split`."""
    num_rows, num_heads, head_size = query.shape
    num_places = keys.shape[1]
    num_splits = triton.cdiv(num_places, split_places)
    sums = query.new_empty(num_rows, num_splits, num_heads, head_size, dtype=torch.float32)
    maxima, totals = (sums.new_empty(num_rows, num_splits, num_heads) for _ in range(2))
    out = torch.empty_like(query)
    block, num_warps, num_stages = TILE_OF_FLOAT32 if query.dtype == torch.float32 else TILE_OF_16_BITS
    options = {"num_warps": num_warps, "num_stages": num_stages}
    heads, head = (max(16, triton.next_power_of_2(size)) for size in (num_heads, head_size))
    sizes = (head_size**-0.5, num_heads, head_size, num_places, heads, head, block, split_places)
    with torch.cuda.device_of(query):
        tensors = (query, key, value, keys, values, slots, positions, sums, maxima, totals)
        split_kernel[(num_splits, num_rows)](*tensors, *sizes, **options)
        join_kernel[(num_heads, num_rows)](
            sums, maxima, totals, out, num_splits, num_heads, head_size, triton.next_power_of_2(num_splits), head
        )
    return out
