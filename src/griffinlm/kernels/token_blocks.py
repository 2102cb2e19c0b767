"""Tokens in blocks whose numbers stay in a processor's cache while an operator goes over them several times."""

import torch
from torch import Tensor

BLOCK_NUMBERS = 2**17
"""Numbers of one array in a block, for each thread: 512 KB in float32, so that several lie in a core's second cache."""


def is_blocked(x: Tensor) -> bool:
    """Whether blocks pay: on a CPU, and not inside torch.compile, which goes over the numbers once by itself."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def token_blocks(x: Tensor, axis: int = 0) -> list[slice]:
    """Slices of an axis, each with BLOCK_NUMBERS numbers of x a thread and a power of two long, the last with the rest.

    Where blocks do not pay there is one.
    """
    num_tokens = x.shape[axis]
    if not is_blocked(x):
        return [slice(0, num_tokens)]
    numbers_a_token = max(x.numel() // max(num_tokens, 1), 1)
    num_numbers = BLOCK_NUMBERS * torch.get_num_threads()
    size = 1 << max(num_numbers // numbers_a_token, 1).bit_length() - 1
    return [slice(start, min(start + size, num_tokens)) for start in range(0, num_tokens, size)]
