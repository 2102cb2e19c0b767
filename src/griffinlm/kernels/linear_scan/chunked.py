"""The RG-LRU on a CPU: blocks that stay in the cache, in each about 3 sqrt(n) vector operations for n tokens."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from griffinlm.config import RG_LRU_EXPONENT
from griffinlm.kernels.linear_scan.reference import SQRT_GRADIENT_FLOOR
from griffinlm.kernels.token_blocks import is_blocked, token_blocks


def linear_scan(decay: Tensor, inputs: Tensor, initial: Tensor) -> Tensor:
    """h_t = decay_t h_{t-1} + inputs_t for t = 0..T-1, with h_{-1} = initial.

    The sequence is cut into chunks of about sqrt(T). All chunks are scanned side by side from zero, then the true
    carries run through the chunks and are added, weighted by the products of decays. Nothing is divided, so the
    result is that of the loop up to rounding for any decay in [0, 1].

    Args:
        decay, inputs: [B, T, L] of one type, contiguous; both are used up.
        initial: [B, L] of the same type.

    Returns:
        h [B, T, L].
    """
    num_rows, num_tokens, width = inputs.shape
    if num_tokens == 1:
        return torch.addcmul(inputs, decay, initial[:, None])
    # A power of two, which divides the blocks that are one.
    chunk = 1 << ((num_tokens - 1).bit_length() + 1) // 2
    num_chunks = -(-num_tokens // chunk)
    missing = num_chunks * chunk - num_tokens
    if missing:
        decay = torch.nn.functional.pad(decay, (0, 0, 0, missing))
        inputs = torch.nn.functional.pad(inputs, (0, 0, 0, missing))
    decay = decay.view(num_rows, num_chunks, chunk, width)
    h = inputs.view(num_rows, num_chunks, chunk, width)
    # In place: h over the inputs, and the products of a chunk's decays over these.
    values, products = h.unbind(2), decay.unbind(2)
    for t in range(1, chunk):
        values[t].addcmul_(products[t], values[t - 1])
        products[t].mul_(products[t - 1])
    carry = initial
    for values, product in zip(h.unbind(1), decay.unbind(1), strict=True):
        values.addcmul_(product, carry[:, None])
        carry = values[:, -1]
    return h.view(num_rows, num_chunks * chunk, width)[:, :num_tokens]


def _coefficients(recurrence_gate: Tensor, softplus_a: Tensor, reset: Tensor, padding: Tensor | None):
    """sigmoid of the gate, effective decay, 1 - a^2 before resets, and the input's scale, all [B, n, L]."""
    gate = torch.sigmoid(recurrence_gate.to(softplus_a.dtype))
    log_a = gate * (-RG_LRU_EXPONENT * softplus_a)
    # 1 - a^2 = -tanh(log a) (1 + a^2) keeps the digits of a decay next to 1, as expm1 does in three times the time.
    variance = torch.tanh(log_a).neg_()
    decay = log_a.exp_()
    variance.addcmul_(variance * decay, decay)
    scale = variance.sqrt()
    # On a CPU looking costs less than filling; a GPU would have to wait.
    if not is_blocked(reset) or reset.any():
        decay.masked_fill_(reset[..., None], 0.0)
        scale.masked_fill_(reset[..., None], 1.0)
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
        h = torch.empty(x.shape, dtype=accumulate, device=x.device)
        carry = initial.to(accumulate)
        for block in token_blocks(x, 1):
            hidden = None if padding is None else padding[:, block]
            _, decay, _, scale = _coefficients(recurrence_gate[:, block], softplus_a, reset[:, block], hidden)
            inputs = scale.mul_(torch.sigmoid(input_gate[:, block].to(accumulate))).mul_(x[:, block])
            h[:, block] = linear_scan(decay, inputs, carry)
            carry = h[:, block.stop - 1]
        ctx.save_for_backward(x, input_gate, recurrence_gate, a_param, reset, initial, lengths, h)
        y = h if padding is None else h.masked_fill(padding, 0.0)
        # Not `to` itself where it has nothing to do: torch 2.11's compiler then gives y no gradient.
        return y if y.dtype == x.dtype else y.to(x.dtype), carry.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        dy, dfinal = gradients
        x, input_gate, recurrence_gate, a_param, reset, initial, lengths, h = ctx.saved_tensors
        accumulate = h.dtype
        padding = None if lengths is None else _padding(lengths, x.shape[1])
        softplus_a = torch.nn.functional.softplus(a_param.to(accumulate))
        dx, dinput_gate, drecurrence_gate = (
            torch.empty_like(like, memory_format=torch.contiguous_format) for like in (x, input_gate, recurrence_gate)
        )
        dlog_a_gate = torch.zeros_like(softplus_a)
        # What flows back into a block: g of the token behind it, and that token's decay.
        g_behind, decay_behind = dfinal.to(accumulate), None
        for block in reversed(token_blocks(x, 1)):
            hidden = None if padding is None else padding[:, block]
            gate, decay, variance, scale = _coefficients(recurrence_gate[:, block], softplus_a, reset[:, block], hidden)
            given = dy[:, block].to(accumulate)
            if hidden is not None:
                given = given.masked_fill(hidden, 0.0)
            # g_t = dy_t + a_{t+1} g_{t+1}: the same scan run backwards, the decay one step late.
            if decay_behind is None:
                decay_behind = torch.ones_like(decay[:, :1])
            late = torch.cat([decay_behind, decay[:, 1:].flip(1)], dim=1)
            g = linear_scan(late, given.flip(1), g_behind).flip(1)
            g_behind, decay_behind = g[:, 0], decay[:, :1]
            input_share = torch.sigmoid(input_gate[:, block].to(accumulate))
            through = g * input_share
            torch.mul(through, scale, out=dx[:, block])
            through *= x[:, block]
            scaled = through * scale
            torch.addcmul(scaled, scaled, input_share, value=-1.0, out=dinput_gate[:, block])
            through /= variance.mul_(4.0).clamp_(min=SQRT_GRADIENT_FLOOR).sqrt_()
            # d scale / d log a = -2 a^2 / sqrt(4 (1 - a^2))
            dlog_a = (g * _before(h, initial, block)).addcmul_(decay, through, value=-2.0).mul_(decay)
            if hidden is not None:
                dlog_a.masked_fill_(hidden, 0.0)
            dlog_a_gate += (dlog_a * gate).sum((0, 1))
            dlog_a *= -RG_LRU_EXPONENT * softplus_a
            drecurrence_gate[:, block] = torch.ops.aten.sigmoid_backward(dlog_a, gate)
        assert decay_behind is not None
        da_param = dlog_a_gate.mul_(-RG_LRU_EXPONENT).mul_(torch.sigmoid(a_param.to(accumulate)))
        dinitial = decay_behind[:, 0] * g_behind
        return (
            dx,
            dinput_gate,
            drecurrence_gate,
            da_param.to(a_param.dtype),
            None,
            dinitial.to(initial.dtype),
            None,
        )


def _before(h: Tensor, initial: Tensor, block: slice) -> Tensor:
    """[B, n, L], h one token before every token of a block."""
    if block.start:
        return h[:, block.start - 1 : block.stop - 1]
    return torch.cat([initial.to(h.dtype)[:, None], h[:, : block.stop - 1]], dim=1)


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
    """What `reference.rg_lru` computes, in about 3 sqrt(T) vector operations; the backward recomputes the gates."""
    y, final = _RgLru.apply(x, input_gate, recurrence_gate, a_param, reset, initial, lengths)
    return y, final
