"""Which soft cap runs where."""

import torch
from torch import Tensor

from griffinlm.kernels.device import require_triton
from griffinlm.kernels.soft_cap import reference


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """What `reference.soft_cap` computes; on a GPU in one kernel where no gradient is wanted, on a CPU over x itself.

    Raises:
        KernelError: the tensors are on a GPU and Triton is not installed.
    """
    if x.requires_grad or torch.compiler.is_compiling():
        return reference.soft_cap(x, cap)
    if x.is_cuda and x.dtype != torch.float64:
        require_triton()
        from griffinlm.kernels.soft_cap import triton

        return triton.soft_cap(x.contiguous(), cap)
    return x.to(torch.promote_types(x.dtype, torch.float32)).div_(cap).tanh_().mul_(cap)
