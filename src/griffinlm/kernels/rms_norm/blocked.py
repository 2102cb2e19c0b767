"""Root mean square normalisation on a CPU, block of tokens by block, with its own backward."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from griffinlm.kernels.rms_norm import reference
from griffinlm.kernels.token_blocks import is_blocked, token_blocks


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, epsilon: float) -> Tensor:
        accumulate = torch.promote_types(x.dtype, torch.float32)
        flat, weight = x.reshape(-1, x.shape[-1]), 1.0 + scale.to(accumulate)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        out = y.view(flat.shape)
        inverse = flat.new_empty(len(flat), 1, dtype=accumulate)
        for block in token_blocks(flat):
            part = flat[block].to(accumulate)
            mean = torch.linalg.vector_norm(part, dim=1, keepdim=True).square_().div_(part.shape[1])
            torch.rsqrt(mean.add_(epsilon), out=inverse[block])
            torch.mul(part * inverse[block], weight, out=out[block])
        ctx.save_for_backward(x, scale, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """With r = 1 / sqrt(mean(x^2) + epsilon) and w = 1 + scale: dx = r w dy - x r^3 mean(x w dy)."""
        (dy,) = gradients
        x, scale, inverse = ctx.saved_tensors
        accumulate = inverse.dtype
        flat, dy, weight = x.reshape(-1, x.shape[-1]), dy.reshape(-1, x.shape[-1]), 1.0 + scale.to(accumulate)
        dx = torch.empty_like(flat, memory_format=torch.contiguous_format)
        dscale = torch.zeros_like(weight)
        for block in token_blocks(flat):
            part, given, r = flat[block].to(accumulate), dy[block].to(accumulate), inverse[block]
            product = part * given
            dscale.addmv_(product.T, r[:, 0])
            share = torch.mv(product, weight)[:, None].mul_(r.pow(3)).div_(part.shape[1])
            scaled = torch.mul(given, weight, out=product).mul_(r)
            torch.addcmul(scaled, part, share, value=-1.0, out=dx[block])
        return dx.view(x.shape), dscale.to(scale.dtype), None


def rms_norm(x: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    """What `reference.rms_norm` computes; the backward keeps x and one number a token."""
    if not is_blocked(x):
        return reference.rms_norm(x, scale, epsilon)
    return _RmsNorm.apply(x, scale, epsilon)  # pyright: ignore[reportReturnType]
