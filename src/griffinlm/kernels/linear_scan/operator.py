"""The RG-LRU as one operator of torch: autograd, torch.compile and torch.export see a call and not its inside."""

from typing import Any

import torch
from torch import Tensor

from griffinlm.kernels.device import num_processors, require_triton
from griffinlm.kernels.linear_scan import chunked


def rg_lru(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    reset: Tensor,
    initial: Tensor,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What `reference.rg_lru` computes: on a GPU by `fused_rg_lru`, on a CPU and in float64 by `chunked.rg_lru`.

    Raises:
        KernelError: the tensors are on a GPU and Triton is not installed.
    """
    is_fused = x.is_cuda and x.dtype != torch.float64
    return (fused_rg_lru if is_fused else chunked.rg_lru)(
        x, input_gate, recurrence_gate, a_param, reset, initial, lengths
    )


@torch.library.custom_op("griffinlm::rg_lru", mutates_args=())
def fused_rg_lru(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    reset: Tensor,
    initial: Tensor,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`reference.rg_lru` by Triton: float32 inside whatever the types outside; second derivatives are refused."""
    launch = _launch()
    inputs = (x, input_gate, recurrence_gate, a_param, reset, initial.float(), lengths)
    tiling = launch.choose_tiling(launch.FORWARD, *x.shape, num_processors(x.device))
    return launch.forward(*(None if t is None else t.contiguous() for t in inputs), tiling)


@torch.library.custom_op("griffinlm::rg_lru_backward", mutates_args=())
def fused_rg_lru_backward(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    reset: Tensor,
    initial: Tensor,
    lengths: Tensor | None,
    y: Tensor,
    dy: Tensor,
    dfinal: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, input_gate, recurrence_gate, a_param and initial; the gates are computed again."""
    launch = _launch()
    inputs = (x, input_gate, recurrence_gate, a_param, reset, initial.float(), lengths, y, dy, dfinal.float())
    tiling = launch.choose_tiling(launch.BACKWARD, *x.shape, num_processors(x.device))
    *gradients, dinitial = launch.backward(*(None if t is None else t.contiguous() for t in inputs), tiling)
    return *gradients, dinitial.to(initial.dtype)


@fused_rg_lru.register_fake
def _(x, input_gate, recurrence_gate, a_param, reset, initial, lengths):
    return x.new_empty(x.shape), initial.new_empty(initial.shape, dtype=torch.float32)


@fused_rg_lru_backward.register_fake
def _(x, input_gate, recurrence_gate, a_param, reset, initial, lengths, y, dy, dfinal):
    return tuple(t.new_empty(t.shape) for t in (x, input_gate, recurrence_gate, a_param, initial))


def _keep(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[0])


def _backward(ctx: Any, dy: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
    *gradients, dinitial = fused_rg_lru_backward(*ctx.saved_tensors, dy, dfinal)
    return *gradients, None, dinitial, None


fused_rg_lru.register_autograd(_backward, setup_context=_keep)


def _launch() -> Any:
    """The module that launches the kernels, imported where it is needed: most machines have no Triton."""
    require_triton()
    from griffinlm.kernels.linear_scan import launch

    return launch
