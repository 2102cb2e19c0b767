"""How the RG-LRU's kernels are launched: tiles, chunks, and the passes of a sequence that is split."""

# Triton compiles what pyright reads as Python.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportAttributeAccessIssue=false

from typing import NamedTuple

import torch
from torch import Tensor

from griffinlm.kernels.device import next_power_of_two
from griffinlm.kernels.linear_scan import triton as kernels

PROGRAMS_A_PROCESSOR = 4
"""Programs of four warps at which the memory of a processor is busy."""
LARGEST_CHUNK_TOKENS = 2**15
"""Offsets inside a chunk are 32-bit numbers."""
CARRY_CHANNELS = 128


class Tiling(NamedTuple):
    """How the work is cut into programs. All but the last two are powers of two."""

    chunk_tokens: int
    """Tokens of a program, whole tiles of groups; a sequence that has no more is not split."""
    num_groups: int
    """Groups of a tile, side by side in the threads of a program."""
    group_tokens: int
    """Consecutive tokens of a group, one after another in a thread."""
    num_channels: int
    num_warps: int
    num_stages: int
    """Tiles whose inputs are on their way at a time."""


SMALLEST_CHUNK_TOKENS = 64
FEW_TOKENS = Tiling(1, num_groups=1, group_tokens=1, num_channels=128, num_warps=1, num_stages=2)
# No register is spilled, and at least three programs fit on a processor of 65,536 registers.
FORWARD = Tiling(SMALLEST_CHUNK_TOKENS, num_groups=8, group_tokens=4, num_channels=64, num_warps=4, num_stages=3)
BACKWARD = Tiling(SMALLEST_CHUNK_TOKENS, num_groups=4, group_tokens=4, num_channels=64, num_warps=4, num_stages=3)


def choose_tiling(tiling: Tiling, num_rows: int, num_tokens: int, width: int, num_processors: int) -> Tiling:
    """The tiling with chunks: splits a sequence only where its rows and channels leave over half of the device idle.

    A split sequence is read twice, which costs 14 bytes a channel in bfloat16 instead of 8. Few tokens, as in a step of
    a decoder, are taken one by one.
    """
    whole = min(next_power_of_two(num_tokens), LARGEST_CHUNK_TOKENS)
    if num_tokens < tiling.num_groups:
        return FEW_TOKENS._replace(chunk_tokens=whole)
    num_programs = num_rows * -(-width // tiling.num_channels)
    num_wanted = PROGRAMS_A_PROCESSOR * num_processors
    if 2 * num_programs < num_wanted:
        whole = min(whole, next_power_of_two(-(-num_tokens * num_programs // num_wanted)))
    return tiling._replace(chunk_tokens=max(whole, SMALLEST_CHUNK_TOKENS))


def forward(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    reset: Tensor,
    initial: Tensor,
    lengths: Tensor | None,
    tiling: Tiling,
) -> tuple[Tensor, Tensor]:
    """y and the final h of `reference.rg_lru`; arguments as there, contiguous, initial in float32."""
    num_rows, num_tokens, width = x.shape
    num_blocks, num_chunks = -(-width // tiling.num_channels), -(-num_tokens // tiling.chunk_tokens)
    y, final = torch.empty_like(x), torch.empty_like(initial)
    inputs = (x, input_gate, recurrence_gate, a_param, reset.view(torch.uint8), lengths)
    sizes, options = (num_tokens, width), constants(tiling)
    with torch.cuda.device_of(x):
        entering = initial
        if num_chunks > 1:
            product, end = (x.new_empty(num_rows, num_chunks - 1, width, dtype=torch.float32) for _ in range(2))
            grid = (num_blocks, num_chunks - 1, num_rows)
            kernels.forward_kernel[grid](*inputs, None, None, None, product, end, *sizes, SUMMARY=True, **options)
            entering = _entering_chunks(product, end, initial, is_reverse=False)
        grid = (num_blocks, num_chunks, num_rows)
        kernels.forward_kernel[grid](*inputs, entering, y, final, None, None, *sizes, SUMMARY=False, **options)
    return y, final


def backward(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    reset: Tensor,
    initial: Tensor,
    lengths: Tensor | None,
    y: Tensor,
    dy: Tensor,
    dfinal: Tensor,
    tiling: Tiling,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, both gates, a_param and initial from those of y and the final h; everything contiguous."""
    num_rows, num_tokens, width = x.shape
    num_blocks, num_chunks = -(-width // tiling.num_channels), -(-num_tokens // tiling.chunk_tokens)
    dx, dinput_gate, drecurrence_gate = (torch.empty_like(t) for t in (x, input_gate, recurrence_gate))
    dsoftplus = x.new_empty(num_rows, num_chunks, width, dtype=torch.float32)
    dinitial = torch.empty_like(initial)
    inputs = (x, input_gate, recurrence_gate, a_param, reset.view(torch.uint8), lengths, initial, y, dy)
    gradients = (dx, dinput_gate, drecurrence_gate, dsoftplus, dinitial)
    sizes, options = (num_tokens, width), constants(tiling)
    with torch.cuda.device_of(x):
        entering = dfinal
        if num_chunks > 1:
            product, end = (x.new_empty(num_rows, num_chunks - 1, width, dtype=torch.float32) for _ in range(2))
            grid, nothing = (num_blocks, num_chunks - 1, num_rows), (None,) * 6
            kernels.backward_kernel[grid](*inputs, *nothing, product, end, *sizes, SUMMARY=True, **options)
            entering = _entering_chunks(product, end, dfinal, is_reverse=True)
        grid = (num_blocks, num_chunks, num_rows)
        kernels.backward_kernel[grid](*inputs, entering, *gradients, None, None, *sizes, SUMMARY=False, **options)
    da_param = dsoftplus.sum((0, 1)) * torch.sigmoid(a_param.float())
    return dx, dinput_gate, drecurrence_gate, da_param.to(a_param.dtype), dinitial


def constants(tiling: Tiling) -> dict[str, int]:
    """What the kernels are compiled for."""
    return {
        "CHUNK": tiling.chunk_tokens,
        "GROUPS": tiling.num_groups,
        "GROUP": tiling.group_tokens,
        "BLOCK": tiling.num_channels,
        "NUM_STAGES": tiling.num_stages,
        "num_warps": tiling.num_warps,
    }


def _entering_chunks(product: Tensor, end: Tensor, start: Tensor, is_reverse: bool) -> Tensor:
    """What enters every chunk [B, C, L]; product and end [B, C-1, L], start [B, L]."""
    num_rows, num_summaries, width = product.shape
    entering = product.new_empty(num_rows, num_summaries + 1, width)
    most_chunks, grid = next_power_of_two(num_summaries), (-(-width // CARRY_CHANNELS), num_rows)
    sizes = (num_summaries + 1, width, most_chunks, CARRY_CHANNELS, is_reverse)
    kernels.carry_kernel[grid](product, end, start, entering, *sizes)
    return entering
