"""The product with a block-diagonal matrix on a CPU: every block reads and writes its channels where they lie."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from griffinlm.kernels.block_diagonal import reference
from griffinlm.kernels.token_blocks import is_blocked


class _BlockDiagonal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        flat, size = x.reshape(-1, x.shape[-1]), weight.shape[1]
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        outputs = y.view(flat.shape).split(size, 1)
        for part, out, matrix, offset in zip(flat.split(size, 1), outputs, weight, bias, strict=True):
            torch.addmm(offset, part, matrix, out=out)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (dy,) = gradients
        x, weight = ctx.saved_tensors
        size = weight.shape[1]
        flat, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, x.shape[-1])
        dx = dweight = dbias = None
        given = dy.split(size, 1)
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(flat, memory_format=torch.contiguous_format)
            for part, out, matrix in zip(given, dx.split(size, 1), weight, strict=True):
                torch.mm(part, matrix.T, out=out)
            dx = dx.view(x.shape)
        if ctx.needs_input_grad[1]:
            dweight = torch.stack([read.T @ part for read, part in zip(flat.split(size, 1), given, strict=True)])
        if ctx.needs_input_grad[2]:
            dbias = dy.sum(0).view(-1, size)
        return dx, dweight, dbias


def block_diagonal(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What `reference.block_diagonal` computes, without moving channels."""
    if not is_blocked(x) or torch.is_autocast_enabled("cpu"):
        return reference.block_diagonal(x, weight, bias)
    return _BlockDiagonal.apply(x, weight, bias)  # pyright: ignore[reportReturnType]
