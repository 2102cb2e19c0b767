"""The gated GELU with its own backward, which keeps the inputs alone; on a CPU block of tokens by block.

With p = sqrt(2 / pi) (g + 0.044715 g^3), gelu(g) = g (1 + tanh p) / 2 = g sigmoid(2 p). On a CPU a sigmoid takes a
fifth of the time of torch's GELU, and the derivative has the same one.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from griffinlm.kernels.gated_gelu import reference
from griffinlm.kernels.token_blocks import is_blocked, token_blocks

LINEAR = 2.0 * math.sqrt(2.0 / math.pi)
CUBIC = 0.044715 * LINEAR


def _share(gate: Tensor) -> tuple[Tensor, Tensor]:
    """sigmoid(LINEAR g + CUBIC g^3), and g^2."""
    square = torch.square(gate)
    return (gate * LINEAR).addcmul_(square, gate, value=CUBIC).sigmoid_(), square


class _GatedGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(gate, x)
        accumulate = torch.promote_types(gate.dtype, torch.float32)
        if not is_blocked(x):
            return reference.gated_gelu(gate, x)
        gates, inputs = gate.reshape(-1, gate.shape[-1]), x.reshape(-1, x.shape[-1])
        y = torch.empty(x.shape, dtype=torch.promote_types(gate.dtype, x.dtype))
        out = y.view(inputs.shape)
        for block in token_blocks(inputs):
            part = gates[block].to(accumulate)
            torch.mul(_share(part)[0].mul_(part), inputs[block], out=out[block])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """With s the sigmoid: d gelu / dg = s + g s (1 - s) (LINEAR + 3 CUBIC g^2)."""
        (dy,) = gradients
        gate, x = ctx.saved_tensors
        if not is_blocked(x):
            dgelu = (dy * x).to(gate.dtype)
            dgate = torch.ops.aten.gelu_backward(dgelu, gate, approximate="tanh")
            return dgate, (torch.nn.functional.gelu(gate, approximate="tanh") * dy).to(x.dtype)
        accumulate = torch.promote_types(gate.dtype, torch.float32)
        gates, inputs, dy = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (gate, x, dy))
        dgate = torch.empty_like(gates, memory_format=torch.contiguous_format)
        dx = torch.empty_like(inputs, memory_format=torch.contiguous_format)
        for block in token_blocks(inputs):
            part, given = gates[block].to(accumulate), dy[block]
            share, slope = _share(part)
            torch.mul(part * share, given, out=dx[block])
            slope.mul_(3.0 * CUBIC).add_(LINEAR)
            derivative = share.addcmul(torch.ops.aten.sigmoid_backward(part, share), slope)
            torch.mul(derivative.mul_(given), inputs[block], out=dgate[block])
        return dgate.view(gate.shape), dx.view(x.shape)


def gated_gelu(gate: Tensor, x: Tensor) -> Tensor:
    """What `reference.gated_gelu` computes."""
    if torch.compiler.is_compiling():
        return reference.gated_gelu(gate, x)
    return _GatedGelu.apply(gate, x)  # pyright: ignore[reportReturnType]
