"""The product with a block-diagonal matrix where the channels lie = its definition, in values and gradients."""

import pytest
import torch
from kernel_forms import DTYPES, assert_equals_definition, normal

from griffinlm.kernels.block_diagonal import reference, strided


def drawn(num_blocks: int, size: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {
        "x": normal(2, 5, num_blocks * size, dtype=dtype),
        "weight": normal(num_blocks, size, size, dtype=dtype, seed=1) / size**0.5,
        "bias": normal(num_blocks, size, dtype=dtype, seed=2),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_blocks", "size"), [(1, 1), (1, 6), (3, 1), (4, 5)])
def test_blocks_where_they_lie_equal_the_definition(num_blocks, size, dtype):
    assert_equals_definition(strided.block_diagonal, reference.block_diagonal, drawn(num_blocks, size, dtype))


def test_gradients_equal_finite_differences():
    leaves = tuple(value.requires_grad_() for value in drawn(2, 3, torch.float64).values())
    assert torch.autograd.gradcheck(strided.block_diagonal, leaves)


@pytest.mark.parametrize("name", ["x", "weight", "bias"])
def test_a_gradient_alone_equals_that_beside_the_others(name):
    inputs = drawn(2, 3, torch.float64)
    inputs[name].requires_grad_()
    (alone,) = torch.autograd.grad(strided.block_diagonal(**inputs).square().sum(), inputs[name])
    for value in inputs.values():
        value.requires_grad_()
    (beside,) = torch.autograd.grad(strided.block_diagonal(**inputs).square().sum(), inputs[name])
    assert torch.equal(alone, beside)


def test_autocast_gives_the_type_of_the_definition():
    inputs = drawn(2, 3, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = strided.block_diagonal(**inputs), reference.block_diagonal(**inputs)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_inputs_that_are_not_contiguous_equal_their_copies():
    inputs = drawn(2, 3, torch.float64)
    expected = strided.block_diagonal(**inputs)
    inputs["x"] = inputs["x"].transpose(0, 1).contiguous().transpose(0, 1)
    inputs["weight"] = inputs["weight"].transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(strided.block_diagonal(**inputs), expected)
