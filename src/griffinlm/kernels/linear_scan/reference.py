"""The RG-LRU as a loop over time: the definition that every faster form is compared with."""

import torch
from torch import Tensor

from griffinlm.config import RG_LRU_EXPONENT

SQRT_GRADIENT_FLOOR = 1e-6
"""Floor of 4z in d sqrt(z)/dz = 1/sqrt(4z), which bounds the derivative by 1,000."""


class BoundedSqrt(torch.autograd.Function):
    """sqrt(z) with its derivative held to at most 1,000, so that z = 0 (a decay that rounded to 1) gives no NaN."""

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return torch.sqrt(z)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        (z,) = ctx.saved_tensors
        return gradient / torch.sqrt(torch.clamp(4.0 * z, min=SQRT_GRADIENT_FLOOR))


def rg_lru(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    reset: Tensor,
    initial: Tensor,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Real-gated linear recurrent unit (Griffin paper, equations 1-4), gates given before their sigmoid.

        log a_t = -8 sigmoid(recurrence_gate_t) softplus(a_param)
        h_t = a_t h_{t-1} + sqrt(1 - a_t^2) sigmoid(input_gate_t) x_t

    Where `reset` holds, h_t = sigmoid(input_gate_t) x_t: a document starts and its first input enters unscaled.

    Args:
        x, input_gate, recurrence_gate: [B, T, L], any floating type.
        a_param: [L]; softplus(a_param) = -log a, minus Lambda of the paper.
        reset: [B, T] bool.
        initial: [B, L], h before the first token.
        lengths: [B], tokens that are real in each row; those behind them leave the state alone and give 0.

    Returns:
        y [B, T, L] in the type of x, and the final h [B, L] in float32 (float64 if x is).
    """
    accumulate = torch.promote_types(x.dtype, torch.float32)
    log_a = -RG_LRU_EXPONENT * torch.sigmoid(recurrence_gate.to(accumulate))
    log_a = log_a * torch.nn.functional.softplus(a_param.to(accumulate))
    starts = reset[..., None]
    decay = torch.exp(log_a).masked_fill(starts, 0.0)
    scale = BoundedSqrt.apply(-torch.expm1(2.0 * log_a))
    scale = torch.where(starts, torch.ones_like(scale), scale)
    inputs = scale * torch.sigmoid(input_gate.to(accumulate)) * x.to(accumulate)
    h, outputs = initial.to(accumulate), []
    for t in range(x.shape[1]):
        new = decay[:, t] * h + inputs[:, t]
        if lengths is None:
            h = new
            outputs.append(h)
        else:
            real = (t < lengths)[:, None]
            h = torch.where(real, new, h)
            outputs.append(torch.where(real, new, torch.zeros_like(new)))
    return torch.stack(outputs, dim=1).to(x.dtype), h
