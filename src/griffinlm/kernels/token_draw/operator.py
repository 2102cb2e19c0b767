"""Which draw runs where."""

from torch import Tensor

from griffinlm.kernels.device import require_triton
from griffinlm.kernels.token_draw import reference


def draw_tokens(logits: Tensor, temperatures: Tensor, numbers: Tensor) -> Tensor:
    """What `reference.draw_tokens` computes: on a GPU in two kernels.

    Raises:
        KernelError: the tensors are on a GPU and Triton is not installed.
    """
    if not logits.is_cuda:
        return reference.draw_tokens(logits, temperatures, numbers)
    require_triton()
    from griffinlm.kernels.token_draw import triton

    return triton.draw_tokens(logits, temperatures, numbers)
