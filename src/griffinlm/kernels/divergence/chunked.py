"""Learning from a teacher over chunks of tokens: logits become their own gradient, and none are kept."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from griffinlm.kernels.divergence.reference import Head
from griffinlm.kernels.token_blocks import token_blocks


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, embedding, soft_cap, labels, expected, teacher, share, chunk_tokens, has_gradient):
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        accumulate = torch.promote_types(x.dtype, torch.float32)
        wants_x, wants_embedding = (has_gradient and wanted for wanted in ctx.needs_input_grad[:2])
        dx = torch.empty_like(x, memory_format=torch.contiguous_format) if wants_x else None
        dembedding = torch.zeros_like(embedding, dtype=accumulate) if wants_embedding else None
        total = torch.zeros((), dtype=accumulate, device=x.device)
        with torch.autocast(device, enabled=False):
            matrix, other = embedding.to(dtype), teacher.embedding.to(dtype)
            for start in range(0, len(x), chunk_tokens):
                chunk = slice(start, start + chunk_tokens)
                part = x[chunk].to(dtype)
                logits = torch.nn.functional.linear(part, matrix).to(accumulate)
                told = torch.nn.functional.linear(expected[chunk].to(dtype), other).to(accumulate)
                # Not in place: torch 2.11's compiler gives a result that was changed in place no gradient.
                total = total + _loss(logits, soft_cap, labels[chunk], told, teacher.soft_cap, share)
                gradient = logits.to(dtype)
                if dx is not None:
                    dx[chunk] = gradient @ matrix
                if dembedding is not None:
                    dembedding += gradient.T @ part
        ctx.save_for_backward(dx, None if dembedding is None else dembedding.to(embedding.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        dx, dembedding = (None if kept is None else kept * gradients[0].to(kept.dtype) for kept in ctx.saved_tensors)
        return dx, dembedding, None, None, None, None, None, None, None


def _loss(
    logits: Tensor, soft_cap: float | None, labels: Tensor, told: Tensor, told_cap: float | None, share: float
) -> Tensor:
    """The loss of logits [n, V] before their cap, which are replaced by the gradient with respect to them.

    With t = s p + (1 - s) [one at the label] it is s sum p log p - sum t log q, and its gradient q - t.
    """
    total = logits.new_zeros(())
    for block in token_blocks(logits):
        part, log_p, wanted = logits[block], told[block], labels[block, None]
        if told_cap is not None:
            log_p.div_(told_cap).tanh_().mul_(told_cap)
        log_p.sub_(log_p.logsumexp(dim=1, keepdim=True))
        tanh = None if soft_cap is None else part.div_(soft_cap).tanh_()
        log_q = part.clone() if soft_cap is None else part * soft_cap
        log_q.sub_(log_q.logsumexp(dim=1, keepdim=True))
        is_counted, label = (wanted >= 0).to(part.dtype), wanted.clamp(min=0)
        p = log_p.exp()
        learned = (p * log_p.sub_(log_q)).sum(dim=1, keepdim=True)
        total += (is_counted * (share * learned - (1.0 - share) * log_q.gather(1, label))).sum()
        gradient = log_q.exp_().sub_(p, alpha=share)
        gradient.scatter_add_(1, label, torch.full_like(is_counted, share - 1.0))
        gradient.mul_(is_counted)
        if tanh is None:
            part.copy_(gradient)
        else:
            # The derivative of the cap is 1 - tanh^2.
            torch.addcmul(gradient, gradient, tanh.square_(), value=-1.0, out=part)
    return total


def divergence(
    x: Tensor, head: Head, labels: Tensor, expected: Tensor, teacher: Head, share: float, chunk_tokens: int
) -> Tensor:
    """What `reference.divergence` computes; logits of both exist for `chunk_tokens` tokens at a time.

    Gradients of x and of the embedding are taken with the loss, so that every logit is computed once.
    """
    teacher = Head(teacher.embedding.detach(), teacher.soft_cap)
    given = labels, expected.detach(), teacher, share, chunk_tokens, torch.is_grad_enabled()
    return _Divergence.apply(x, head.embedding, head.soft_cap, *given)  # pyright: ignore[reportReturnType]
