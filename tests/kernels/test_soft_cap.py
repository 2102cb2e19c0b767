"""The soft cap, as it runs on a CPU and by its kernel = the definition in float64."""

import pytest
import torch
from device import DEVICE
from tolerances import assert_agree

from griffinlm.kernels.soft_cap import operator, reference

SIZES = [0, 1, 2047, 2049, 10_000]


def logits(num_logits: int, dtype: torch.dtype, spread: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_logits)
    return (spread * torch.randn(num_logits, generator=generator)).to(dtype).to(DEVICE)


@pytest.mark.usefixtures("interpreted", "poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_logits", SIZES[1:])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 1000.0])
def test_kernel_equals_definition_and_keeps_the_digits_of_small_numbers(dtype, num_logits, spread):
    from griffinlm.kernels.soft_cap import triton

    x = logits(num_logits, dtype, spread)
    found, expected = triton.soft_cap(x, 30.0), reference.soft_cap(x.double(), 30.0)
    assert found.dtype == torch.float32
    assert ((found - expected).abs() <= 2e-6 * expected.abs()).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_logits", SIZES)
def test_operator_equals_definition_with_and_without_a_gradient(dtype, num_logits):
    x = logits(num_logits, dtype, 30.0)
    expected = reference.soft_cap(x.double(), 30.0)
    trained = operator.soft_cap(x.clone().requires_grad_(), 30.0)
    for found in (trained, operator.soft_cap(x.clone(), 30.0)):
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_agree(found, expected, "other kernels", str(found.dtype), "blocked")
