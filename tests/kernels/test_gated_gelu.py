"""The gated GELU block by block = its definition, in values and gradients."""

import pytest
import torch
from kernel_forms import BLOCKS, DTYPES, assert_equals_definition, normal, with_blocks
from tolerances import assert_agree

from griffinlm.kernels.gated_gelu import blocked, reference


@pytest.mark.parametrize("num_numbers", BLOCKS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 7), (3, 8)])
def test_blocks_equal_the_definition(shape, dtype, num_numbers):
    leaves = {"gate": normal(*shape, dtype=dtype), "x": normal(*shape, dtype=dtype, seed=1)}
    with with_blocks(num_numbers):
        assert_equals_definition(blocked.gated_gelu, reference.gated_gelu, leaves)


@pytest.mark.parametrize("types", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_two_types_give_the_types_of_the_definition(types):
    leaves = {"gate": normal(2, 3, 4, dtype=types[0]), "x": normal(2, 3, 4, dtype=types[1], seed=1)}
    found, expected = blocked.gated_gelu(**leaves), reference.gated_gelu(**leaves)
    assert found.dtype == expected.dtype == torch.float32
    assert_agree(found, expected, "other kernels", torch.bfloat16, "blocked")


def test_whole_tensors_equal_the_definition(monkeypatch):
    """What a GPU runs, on a CPU."""
    monkeypatch.setattr(blocked, "is_blocked", lambda x: False)
    leaves = {"gate": normal(2, 5, 7), "x": normal(2, 5, 7, seed=1)}
    assert_equals_definition(blocked.gated_gelu, reference.gated_gelu, leaves)


def test_gradients_equal_finite_differences():
    leaves = (normal(2, 3, 4).requires_grad_(), normal(2, 3, 4, seed=1).requires_grad_())
    with with_blocks(4):
        assert torch.autograd.gradcheck(blocked.gated_gelu, leaves)


def test_inputs_that_are_not_contiguous_equal_their_copies():
    gate, x = normal(4, 6, 5).transpose(0, 1), normal(6, 4, 5, seed=1)
    assert torch.equal(blocked.gated_gelu(gate, x), blocked.gated_gelu(gate.contiguous(), x))
