"""Rotary position embedding on a CPU, written where it will lie; its backward is the rotation back."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from griffinlm.kernels.rotation import reference
from griffinlm.kernels.token_blocks import is_blocked


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, direction: float) -> Tensor:
    half = cos.shape[-1]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    first, second = x[..., :half], x[..., half : 2 * half]
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-direction)
    torch.mul(second, cos, out=out[..., half : 2 * half]).addcmul_(first, sin, value=direction)
    out[..., 2 * half :] = x[..., 2 * half :]
    return out


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (dout,) = gradients
        cos, sin = ctx.saved_tensors
        return _rotated(dout, cos, sin, -1.0), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """What `reference.rotate` computes; cos and sin have no gradient."""
    if not is_blocked(x):
        return reference.rotate(x, cos, sin)
    turn = cos.to(x.dtype), sin.to(x.dtype)
    return _Rotate.apply(x, *turn)  # pyright: ignore[reportReturnType]
