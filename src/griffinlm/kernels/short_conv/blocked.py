"""The short convolution with its own backward; on a CPU block of tokens by block."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from griffinlm.kernels.short_conv import reference
from griffinlm.kernels.token_blocks import token_blocks


def _seen(positions: Tensor, num_taps: int, dtype: torch.dtype) -> Tensor:
    """[K, B, T, 1], whether tap s counts at a token, as a number."""
    taps = torch.arange(num_taps, device=positions.device)
    return (positions >= taps[:, None, None]).to(dtype)[..., None]


class _ShortConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, positions: Tensor, tail: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, positions, tail)
        past, used, offset = tail.shape[1], weight.to(x.dtype), bias.to(x.dtype)
        seen = _seen(positions, len(weight), x.dtype)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for block in token_blocks(x, 1):
            inputs = _inputs(x, tail, block)
            num_tokens = block.stop - block.start
            sums = torch.addcmul(offset, inputs[:, past:], used[past], out=out[:, block])
            for s in range(1, past + 1):
                sums.addcmul_(inputs[:, past - s :][:, :num_tokens] * used[past - s], seen[s, :, block])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (dout,) = gradients
        x, weight, positions, tail = ctx.saved_tensors
        accumulate = torch.promote_types(x.dtype, torch.float32)
        past, used = tail.shape[1], weight.to(x.dtype)
        seen = _seen(positions, len(weight), x.dtype)
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        dtail = torch.zeros_like(tail, dtype=x.dtype)
        dweight = torch.zeros_like(weight, dtype=accumulate)
        dbias = torch.zeros_like(dweight[0])
        for block in token_blocks(x, 1):
            inputs, given = _inputs(x, tail, block), dout[:, block]
            num_tokens = block.stop - block.start
            dbias += given.sum((0, 1), dtype=accumulate)
            dweight[past] += (given * inputs[:, past:]).sum((0, 1), dtype=accumulate)
            # What a token gives to those before it goes to the block before, which is complete but for that.
            torch.mul(given, used[past], out=dx[:, block])
            for s in range(1, past + 1):
                counted = given * seen[s, :, block]
                dweight[past - s] += (counted * inputs[:, past - s :][:, :num_tokens]).sum((0, 1), dtype=accumulate)
                counted.mul_(used[past - s])
                num_outside = min(max(s - block.start, 0), num_tokens)
                first = past - s + block.start
                dtail[:, first : first + num_outside] += counted[:, :num_outside]
                dx[:, block.start - s + num_outside : block.stop - s] += counted[:, num_outside:]
        return dx, dweight.to(weight.dtype), dbias.to(weight.dtype), None, dtail.to(tail.dtype)


def _inputs(x: Tensor, tail: Tensor, block: slice) -> Tensor:
    """[B, K-1+n, L], the inputs of a block's n tokens and the K-1 before them."""
    past = tail.shape[1]
    if block.start >= past:
        return x[:, block.start - past : block.stop]
    return torch.cat([tail[:, block.start :].to(x.dtype), x[:, : block.stop]], dim=1)


def short_conv(
    x: Tensor, weight: Tensor, bias: Tensor, positions: Tensor, tail: Tensor | None, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What `reference.short_conv` computes; the backward keeps x alone."""
    if torch.compiler.is_compiling():
        return reference.short_conv(x, weight, bias, positions, tail, lengths)
    past = len(weight) - 1
    if tail is None:
        tail = x.new_zeros(x.shape[0], past, x.shape[2])
    out = _ShortConv.apply(x, weight, bias, positions, tail)
    return out, reference.next_tail(x, tail, lengths)  # pyright: ignore[reportReturnType]
