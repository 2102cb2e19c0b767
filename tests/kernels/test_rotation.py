"""The rotation written in place = its definition, in values and gradients."""

from functools import partial

import pytest
import torch
from kernel_forms import DTYPES, assert_equals_definition, normal

from griffinlm.kernels.rotation import in_place, reference


def angles(half: int, num_tokens: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = normal(2, num_tokens, 1, half, dtype=torch.float32, seed=1)
    return torch.cos(drawn), torch.sin(drawn)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("half", [0, 1, 2, 4])
def test_in_place_equals_the_definition(half, dtype):
    cos, sin = angles(half)
    assert_equals_definition(
        partial(in_place.rotate, cos=cos, sin=sin),
        partial(reference.rotate, cos=cos, sin=sin),
        {"x": normal(2, 5, 3, 8, dtype=dtype)},
    )


def test_gradients_equal_finite_differences():
    cos, sin = (turn.double() for turn in angles(2))
    x = normal(2, 5, 3, 6).requires_grad_()
    assert torch.autograd.gradcheck(partial(in_place.rotate, cos=cos, sin=sin), x)


def test_inputs_that_are_not_contiguous_equal_their_copies():
    x, (cos, sin) = normal(2, 3, 5, 8).transpose(1, 2), angles(2)
    assert torch.equal(in_place.rotate(x, cos, sin), in_place.rotate(x.contiguous(), cos, sin))
