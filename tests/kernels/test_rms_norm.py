"""The norm block by block = its definition, in values and gradients."""

from functools import partial

import pytest
import torch
from kernel_forms import BLOCKS, DTYPES, assert_equals_definition, normal, with_blocks

from griffinlm.kernels.rms_norm import blocked, reference


@pytest.mark.parametrize("num_numbers", BLOCKS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 7), (3, 8), (12,)])
def test_blocks_equal_the_definition(shape, dtype, num_numbers):
    leaves = {"x": normal(*shape, dtype=dtype), "scale": normal(shape[-1], dtype=dtype, seed=1)}
    with with_blocks(num_numbers):
        assert_equals_definition(
            partial(blocked.rms_norm, epsilon=1e-3), partial(reference.rms_norm, epsilon=1e-3), leaves
        )


def test_inputs_that_are_not_contiguous_equal_their_copies():
    x = normal(4, 6, 5).transpose(0, 1)
    scale = normal(10, seed=1)[::2]
    assert torch.equal(blocked.rms_norm(x, scale, 1e-6), blocked.rms_norm(x.contiguous(), scale.contiguous(), 1e-6))


def test_gradients_equal_finite_differences():
    leaves = (normal(2, 3, 4).requires_grad_(), normal(4, seed=1).requires_grad_())
    with with_blocks(4):
        assert torch.autograd.gradcheck(partial(blocked.rms_norm, epsilon=1e-2), leaves)


def test_a_row_of_zeros_stays_zero_and_has_finite_gradients():
    x = torch.zeros(2, 4, requires_grad=True)
    y = blocked.rms_norm(x, torch.zeros(4), 1e-6)
    y.sum().backward()
    assert not y.any()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.full((2, 4), 1e3))
