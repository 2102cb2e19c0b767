"""Cross-entropy of the next token over chunks of tokens: logits become their own gradient, and none are kept."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from griffinlm.kernels.token_blocks import token_blocks


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, embedding, labels, soft_cap, chunk_tokens, has_gradient):
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        accumulate = torch.promote_types(x.dtype, torch.float32)
        wants_x, wants_embedding = (has_gradient and wanted for wanted in ctx.needs_input_grad[:2])
        dx = torch.empty_like(x, memory_format=torch.contiguous_format) if wants_x else None
        dembedding = torch.zeros_like(embedding, dtype=accumulate) if wants_embedding else None
        total = torch.zeros((), dtype=accumulate, device=x.device)
        with torch.autocast(device, enabled=False):
            matrix = embedding.to(dtype)
            for start in range(0, len(x), chunk_tokens):
                chunk = slice(start, start + chunk_tokens)
                part = x[chunk].to(dtype)
                logits = torch.nn.functional.linear(part, matrix).to(accumulate)
                # Not in place: torch 2.11's compiler gives a result that was changed in place no gradient.
                total = total + _loss(logits, labels[chunk], soft_cap, wants_x or wants_embedding)
                gradient = logits.to(dtype)
                if dx is not None:
                    dx[chunk] = gradient @ matrix
                if dembedding is None:
                    continue
                if dtype == accumulate:
                    torch.addmm(dembedding, gradient.T, part, out=dembedding)
                else:
                    dembedding += gradient.T @ part
        ctx.save_for_backward(dx, None if dembedding is None else dembedding.to(embedding.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        dx, dembedding = (None if kept is None else kept * gradients[0].to(kept.dtype) for kept in ctx.saved_tensors)
        return dx, dembedding, None, None, None, None


def _loss(logits: Tensor, labels: Tensor, soft_cap: float | None, has_gradient: bool) -> Tensor:
    """The loss of logits [n, V] before their cap, which are replaced by the gradient with respect to them."""
    total = logits.new_zeros(())
    for block in token_blocks(logits):
        part, wanted = logits[block], labels[block, None]
        tanh = None if soft_cap is None else part.div_(soft_cap).tanh_()
        label = wanted.clamp(min=0)
        capped = part if soft_cap is None else part * soft_cap
        capped = capped - capped.amax(dim=1, keepdim=True)
        chosen = capped.gather(1, label)
        weights = capped.exp_()
        sums = weights.sum(dim=1, keepdim=True)
        is_counted = wanted >= 0
        total += torch.where(is_counted, sums.log() - chosen, 0.0).sum()
        if not has_gradient:
            continue
        # softmax - one at the label, then the derivative of the cap, 1 - tanh^2.
        weights.mul_(is_counted / sums)
        weights.scatter_add_(1, label, -is_counted.to(weights.dtype))
        if tanh is None:
            part.copy_(weights)
        else:
            torch.addcmul(weights, weights, tanh.square_(), value=-1.0, out=part)
    return total


def cross_entropy(x: Tensor, embedding: Tensor, labels: Tensor, soft_cap: float | None, chunk_tokens: int) -> Tensor:
    """What `reference.cross_entropy` computes; logits exist for `chunk_tokens` tokens at a time.

    Gradients of x and of the embedding are taken with the loss, so that every logit is computed once.
    """
    return _CrossEntropy.apply(x, embedding, labels, soft_cap, chunk_tokens, torch.is_grad_enabled())  # pyright: ignore[reportReturnType]
