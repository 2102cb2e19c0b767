"""The RG-LRU on a CPU: two levels of chunks, about 2 sqrt(T) vector operations instead of T, and its own backward."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from griffinlm.config import RG_LRU_EXPONENT
from griffinlm.kernels.linear_scan.reference import SQRT_GRADIENT_FLOOR


def linear_scan(decay: Tensor, inputs: Tensor, initial: Tensor) -> Tensor:
    """h_t = decay_t h_{t-1} + inputs_t for t = 0..T-1, with h_{-1} = initial.

    The sequence is cut into chunks of about sqrt(T). All chunks are scanned side by side from zero, then the true
    carries run through the chunks and are added, weighted by the products of decays. Nothing is divided, so the
    result is that of the loop up to rounding for any decay in [0, 1].

    Args:
        decay, inputs: [B, T, L] of one type.
        initial: [B, L] of the same type.

    Returns:
        h [B, T, L].
    """
    num_rows, num_tokens, width = inputs.shape
    if num_tokens == 1:
        return torch.addcmul(inputs, decay, initial[:, None])
    chunk = math.isqrt(num_tokens - 1) + 1
    num_chunks = -(-num_tokens // chunk)
    missing = num_chunks * chunk - num_tokens
    if missing:
        decay = torch.nn.functional.pad(decay, (0, 0, 0, missing))
        inputs = torch.nn.functional.pad(inputs, (0, 0, 0, missing))
    decay = decay.reshape(num_rows, num_chunks, chunk, width)
    inputs = inputs.reshape(num_rows, num_chunks, chunk, width)
    h, product = torch.empty_like(inputs), torch.empty_like(inputs)
    h[:, :, 0], product[:, :, 0] = inputs[:, :, 0], decay[:, :, 0]
    for t in range(1, chunk):
        torch.addcmul(inputs[:, :, t], decay[:, :, t], h[:, :, t - 1], out=h[:, :, t])
        torch.mul(decay[:, :, t], product[:, :, t - 1], out=product[:, :, t])
    carry = initial
    for c in range(num_chunks):
        h[:, c].addcmul_(product[:, c], carry[:, None])
        carry = h[:, c, -1]
    return h.reshape(num_rows, num_chunks * chunk, width)[:, :num_tokens]


def _coefficients(recurrence_gate: Tensor, softplus_a: Tensor, starts: Tensor, padding: Tensor | None):
    """sigmoid of the gate, effective decay, 1 - a^2 before resets, and the input's scale, all [B, T, L]."""
    gate = torch.sigmoid(recurrence_gate.to(softplus_a.dtype))
    log_a = gate * (-RG_LRU_EXPONENT * softplus_a)
    variance = torch.expm1(2.0 * log_a).neg_()
    scale = variance.sqrt().masked_fill_(starts, 1.0)
    decay = log_a.exp_().masked_fill_(starts, 0.0)
    if padding is not None:
        decay.masked_fill_(padding, 1.0)
        scale.masked_fill_(padding, 0.0)
    return gate, decay, variance, scale


class _RgLru(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, input_gate, recurrence_gate, a_param, reset, initial, lengths):
        accumulate = torch.promote_types(x.dtype, torch.float32)
        padding = None if lengths is None else _padding(lengths, x.shape[1])
        softplus_a = torch.nn.functional.softplus(a_param.to(accumulate))
        _, decay, _, scale = _coefficients(recurrence_gate, softplus_a, reset[..., None], padding)
        inputs = scale.mul_(torch.sigmoid(input_gate.to(accumulate))).mul_(x)
        h = linear_scan(decay, inputs, initial.to(accumulate))
        ctx.save_for_backward(x, input_gate, recurrence_gate, a_param, reset, initial, lengths, h)
        y = h if padding is None else h.masked_fill(padding, 0.0)
        # A copy: y and the saved h must not be one tensor where the type is kept.
        return y.to(x.dtype, copy=True), h[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        dy, dfinal = gradients
        x, input_gate, recurrence_gate, a_param, reset, initial, lengths, h = ctx.saved_tensors
        accumulate = h.dtype
        padding = None if lengths is None else _padding(lengths, x.shape[1])
        starts = reset[..., None]
        softplus_a = torch.nn.functional.softplus(a_param.to(accumulate))
        gate, decay, variance, scale = _coefficients(recurrence_gate, softplus_a, starts, padding)
        dy = dy.to(accumulate)
        if padding is not None:
            dy = dy.masked_fill(padding, 0.0)
        # g_t = dy_t + a_{t+1} g_{t+1}: the same scan run backwards, the decay one step late.
        late = torch.cat([decay[:, 1:], torch.ones_like(decay[:, :1])], dim=1)
        g = linear_scan(late.flip(1), dy.flip(1), dfinal.to(accumulate)).flip(1)
        before = torch.cat([initial.to(accumulate)[:, None], h[:, :-1]], dim=1)
        input_share = torch.sigmoid(input_gate.to(accumulate))
        dx = g * input_share
        through_scale = dx * x
        dx *= scale
        dinput_gate = (through_scale * scale).mul_(1.0 - input_share)
        through_scale /= variance.mul_(4.0).clamp_(min=SQRT_GRADIENT_FLOOR).sqrt_()
        # d scale / d log a = -2 a^2 / sqrt(4 (1 - a^2))
        dlog_a = (g * before).addcmul_(decay * through_scale, torch.tensor(-2.0, dtype=accumulate)).mul_(decay)
        if padding is not None:
            dlog_a.masked_fill_(padding, 0.0)
        da_param = torch.einsum("btl,btl->l", dlog_a, gate).mul_(-RG_LRU_EXPONENT)
        da_param *= torch.sigmoid(a_param.to(accumulate))
        drecurrence_gate = dlog_a.mul_(softplus_a).mul_(gate).mul_(gate.neg_().add_(1.0)).mul_(-RG_LRU_EXPONENT)
        return (
            dx.to(x.dtype),
            dinput_gate.to(input_gate.dtype),
            drecurrence_gate.to(recurrence_gate.dtype),
            da_param.to(a_param.dtype),
            None,
            (decay[:, 0] * g[:, 0]).to(initial.dtype),
            None,
        )


def _padding(lengths: Tensor, num_tokens: int) -> Tensor:
    return (torch.arange(num_tokens, device=lengths.device)[None] >= lengths[:, None])[..., None]


def rg_lru(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    reset: Tensor,
    initial: Tensor,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What `reference.rg_lru` computes, in about 2 sqrt(T) vector operations; the backward recomputes the gates."""
    y, final = _RgLru.apply(x, input_gate, recurrence_gate, a_param, reset, initial, lengths)
    return y, final
