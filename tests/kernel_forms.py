"""How the kernels' tests compare a form that goes block by block with its definition."""

from collections.abc import Callable, Mapping
from unittest import mock

import torch
from tolerances import assert_agree
from torch import Tensor

from griffinlm.kernels import token_blocks

BLOCKS = (1, 24, 2**17)
"""Numbers of a block: a token each, a few tokens, everything at once."""
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def with_blocks(num_numbers: int):
    """Blocks of so many numbers."""
    return mock.patch.object(token_blocks, "BLOCK_NUMBERS", num_numbers)


def outputs_and_gradients(operator: Callable[..., Tensor], leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The output, and the gradient of every leaf for a loss that weighs the output at random."""
    inputs = {name: value.detach().requires_grad_() for name, value in leaves.items()}
    out = operator(**inputs)
    loss = (out.double() * normal(*out.shape, seed=99)).sum()
    gradients = torch.autograd.grad(loss, list(inputs.values()))
    return {"output": out.detach(), **dict(zip(inputs, gradients, strict=True))}


def assert_equals_definition(
    blocked: Callable[..., Tensor], reference: Callable[..., Tensor], leaves: Mapping[str, Tensor]
) -> None:
    """Output and gradients agree, and have the types of the definition's."""
    found, expected = (outputs_and_gradients(operator, leaves) for operator in (blocked, reference))
    dtype = next(iter(leaves.values())).dtype
    for name, wanted in expected.items():
        assert found[name].dtype == wanted.dtype, name
        assert_agree(found[name], wanted, "other kernels", dtype, "blocked", name)
