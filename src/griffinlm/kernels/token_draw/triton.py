"""The draw of a token on a GPU, which reads the logits once: a program for a part of a row, then one for the row.

A part gives its best logit and, relative to that, the sums of weights of its blocks; these are joined, and the token is
looked for in the one block that holds it. Nothing is added by atomics, so equal calls give equal bits.

Not handled here: logits that are not float32, top-k, top-p and min-p.
"""

# Triton compiles what pyright reads as Python.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from griffinlm.executor import DRAWN_TEMPERATURES
from griffinlm.kernels.token_draw import reference

NOT_FINITE = tl.constexpr(reference.NOT_FINITE)
BLOCK = tl.constexpr(reference.BLOCK_TOKENS)
BLOCKS = tl.constexpr(16)
"""Of a part."""
LOWEST, HIGHEST = (tl.constexpr(limit) for limit in DRAWN_TEMPERATURES)
LIGHTEST = tl.constexpr(1e-30)
"""Blocks that weigh less, where the best token weighs 1, are left out: all tokens of such a block may round to 0."""
NO_INDEX = tl.constexpr(2**30)


@triton.jit
def _weights(logits, best, temperature):
    divisor = tl.minimum(tl.maximum(temperature, LOWEST), HIGHEST).to(tl.float32)
    return tl.exp((logits - best) / divisor)


@triton.jit
def _first_above(reached, weights, indices, number):
    """The first index that weighs something where the running sum is above the number; at most the last such index."""
    is_above = tl.min(tl.where((reached > number) & (weights > 0.0), indices, NO_INDEX), axis=0)
    return tl.minimum(is_above, tl.max(tl.where(weights > 0.0, indices, 0), axis=0))


@triton.jit
def parts_kernel(logits_ptr, temperatures_ptr, bests_ptr, tokens_ptr, sums_ptr, row_stride, vocab_size):
    """Of BLOCKS blocks of one row: the best logit and its first id [B, P], and the sums of weights [B, P, BLOCKS].

    The best logit is NaN where any is.
    """
    part, row = tl.program_id(0), tl.program_id(1)
    blocks, places = tl.arange(0, BLOCKS), tl.arange(0, BLOCK)
    ids = (part * BLOCKS + blocks)[:, None] * BLOCK + places[None, :]
    at = logits_ptr + row.to(tl.int64) * row_stride + ids
    logits = tl.load(at, mask=ids < vocab_size, other=float("-inf"))
    best = tl.max(tl.max(logits, axis=1), axis=0)
    token = tl.min(tl.min(tl.where(logits == best, ids, NO_INDEX), axis=1), axis=0)
    # Of -inf alone the weights are 0; the difference would be no number.
    base = tl.where(tl.abs(best) < float("inf"), best, 0.0)
    sums = tl.sum(_weights(logits, base, tl.load(temperatures_ptr + row)), axis=1)
    num_missing = tl.sum(tl.sum((logits != logits).to(tl.int32), axis=1), axis=0)
    out = row * tl.num_programs(0) + part
    tl.store(bests_ptr + out, tl.where(num_missing > 0, float("nan"), best))
    tl.store(tokens_ptr + out, token)
    tl.store(sums_ptr + out * BLOCKS + blocks, sums)


@triton.jit
def join_kernel(
    logits_ptr,
    temperatures_ptr,
    numbers_ptr,
    bests_ptr,
    tokens_ptr,
    sums_ptr,
    out_ptr,
    row_stride,
    vocab_size,
    num_parts,
    PARTS: tl.constexpr,
):
    """The token of one row, int64 [B], from what its parts gave."""
    row = tl.program_id(0)
    temperature, number = tl.load(temperatures_ptr + row), tl.load(numbers_ptr + row)
    parts = tl.arange(0, PARTS)
    in_row = parts < num_parts
    bests = tl.load(bests_ptr + row * num_parts + parts, mask=in_row, other=float("-inf"))
    tokens = tl.load(tokens_ptr + row * num_parts + parts, mask=in_row, other=NO_INDEX)
    best = tl.max(bests, axis=0)
    num_missing = tl.sum((bests != bests).to(tl.int32), axis=0)
    is_finite = (num_missing == 0) & (tl.abs(best) < float("inf"))
    best_token = tl.min(tl.where(bests == best, tokens, NO_INDEX), axis=0)
    best = tl.where(is_finite, best, 0.0)
    part_blocks = parts[:, None] * BLOCKS + tl.arange(0, BLOCKS)[None, :]
    sums = tl.load(sums_ptr + row * num_parts * BLOCKS + part_blocks, mask=in_row[:, None], other=0.0)
    sums = tl.reshape(sums * _weights(bests, best, temperature)[:, None], [PARTS * BLOCKS])
    sums = tl.where(sums >= LIGHTEST, sums, 0.0).to(tl.float64)
    blocks = tl.arange(0, PARTS * BLOCKS)
    reached = tl.cumsum(sums, axis=0)
    share = number * tl.max(reached, axis=0)
    block = _first_above(reached, sums, blocks, share)
    before = tl.max(tl.where(blocks < block, reached, 0.0), axis=0)
    places = tl.arange(0, BLOCK)
    ids = block * BLOCK + places
    at = logits_ptr + row.to(tl.int64) * row_stride + ids
    weights = _weights(tl.load(at, mask=ids < vocab_size, other=float("-inf")), best, temperature).to(tl.float64)
    drawn = block * BLOCK + _first_above(tl.cumsum(weights, axis=0), weights, places, share - before)
    token = tl.where(temperature > 0.0, drawn, best_token)
    tl.store(out_ptr + row, tl.where(is_finite, token, NOT_FINITE).to(tl.int64))


def draw_tokens(logits: Tensor, temperatures: Tensor, numbers: Tensor) -> Tensor:
    """`reference.draw_tokens`, but for numbers as near to a step between two tokens as sums are rounded.

    Rows of logits may lie apart; their numbers lie side by side.
    """
    num_rows, vocab_size = logits.shape
    num_parts = triton.cdiv(vocab_size, BLOCK.value * BLOCKS.value)
    bests = logits.new_empty(num_rows, num_parts)
    tokens = logits.new_empty(num_rows, num_parts, dtype=torch.int32)
    sums = logits.new_empty(num_rows, num_parts, BLOCKS.value)
    out = logits.new_empty(num_rows, dtype=torch.int64)
    parts, sizes = (bests, tokens, sums), (logits.stride(0), vocab_size)
    with torch.cuda.device_of(logits):
        parts_kernel[(num_parts, num_rows)](logits, temperatures, *parts, *sizes)
        join_kernel[(num_rows,)](
            logits, temperatures, numbers, *parts, out, *sizes, num_parts, triton.next_power_of_2(num_parts)
        )
    return out
