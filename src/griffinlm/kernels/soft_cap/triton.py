"""The soft cap on a GPU: each logit is read once, in its own type, and written once."""

# Triton compiles what pyright reads as Python.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from griffinlm.kernels.linear_scan.triton import sigmoid

TILE = 2048


@triton.jit
def tanh(x):
    """2 sigmoid(2 x) - 1, by its series where that has lost its digits."""
    square = x * x
    series = 2.0 / 15 - square * (17.0 / 315 - square * (62.0 / 2835))
    series = x * (1.0 - square * (1.0 / 3 - square * series))
    return tl.where(square < 0.0625, series, 2.0 * sigmoid(2.0 * x) - 1.0)


@triton.jit
def soft_cap_kernel(x_ptr, out_ptr, num_logits, cap, TILE: tl.constexpr):
    """`reference.soft_cap` of TILE numbers."""
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    x = tl.load(x_ptr + at, mask=at < num_logits, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, cap * tanh(x / cap), mask=at < num_logits)


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """`reference.soft_cap`, x contiguous."""
    out = torch.empty_like(x, dtype=torch.float32)
    with torch.cuda.device_of(x):
        soft_cap_kernel[(triton.cdiv(x.numel(), TILE),)](x, out, x.numel(), cap, TILE)
    return out
