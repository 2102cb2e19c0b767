"""The kernels that draw a token, interpreted or on a GPU: what is drawn is what the definition's probabilities give."""

import math

import pytest
import torch
from device import DEVICE
from torch import Tensor

from griffinlm.executor import DRAWN_TEMPERATURES
from griffinlm.kernels.token_draw import reference

pytestmark = pytest.mark.usefixtures("interpreted", "poisoned")

SUM_TOLERANCE = 1e-5
"""Relative, of a sum of float32 weights."""
NUMBERS = (0.0, 1e-12, 0.2, 0.5, 0.9, 1.0 - 2.0**-53)


def drawn(logits: Tensor, temperatures: Tensor, numbers: Tensor) -> list[int]:
    from griffinlm.kernels.token_draw import triton

    return triton.draw_tokens(logits.to(DEVICE), temperatures.to(DEVICE), numbers.to(DEVICE)).tolist()


def assert_is_drawn(token: int, logits: Tensor, temperature: float, number: float) -> None:
    """The running sum of probabilities passes the number at the token, up to rounding."""
    assert logits[token] > -math.inf
    divisor = min(max(temperature, DRAWN_TEMPERATURES[0]), DRAWN_TEMPERATURES[1])
    weights = torch.exp((logits.double() - logits.double().max()) / divisor)
    reached = weights.cumsum(0) / weights.sum()
    assert weights[token] > 0
    assert reached[token] - weights[token] / weights.sum() - SUM_TOLERANCE <= number <= reached[token] + SUM_TOLERANCE


@pytest.mark.parametrize("vocab_size", [1, 2, 255, 256, 257, 4096, 4097, 20_001])
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("temperature", [1e-30, 0.3, 1.0, 1e30])
def test_numbers_draw_the_tokens_that_hold_them(vocab_size, spread, temperature):
    """Logits with many equals, half of which may not be drawn; rows lie apart in memory."""
    generator = torch.Generator().manual_seed(vocab_size)
    logits = (spread * torch.randn(len(NUMBERS), vocab_size + 3, generator=generator)).round(decimals=1)
    is_forbidden = torch.rand(logits.shape, generator=generator) < 0.5
    is_forbidden[:, vocab_size // 2] = False
    logits = logits.masked_fill(is_forbidden, -math.inf)[:, :vocab_size]
    temperatures = torch.full((len(NUMBERS),), temperature, dtype=torch.float64)
    numbers = torch.tensor(NUMBERS, dtype=torch.float64)
    found = drawn(logits, temperatures, numbers)
    for row, (token, number) in enumerate(zip(found, NUMBERS, strict=True)):
        assert_is_drawn(token, logits[row], temperature, number)


def test_best_token_is_the_first_of_its_equals_in_whatever_part_it_stands():
    logits = torch.zeros(4, 9000)
    logits[1, [8999, 5000]], logits[2, 4096], logits[3, :10] = 2.0, 1.0, -math.inf
    zeros = torch.zeros(4, dtype=torch.float64)
    expected = [0, 5000, 4096, 10]
    assert drawn(logits, zeros, zeros) == expected
    assert reference.draw_tokens(logits, zeros, zeros).tolist() == expected


def test_parts_far_below_the_best_are_never_drawn():
    """The first part's weights beside the best one's round to nothing, though beside each other they do not."""
    logits = torch.full((3, 9000), -90.0)
    logits[:, 4096 : 4096 + 5] = -math.inf
    logits[:, 8500] = 60.0
    ones = torch.ones(3, dtype=torch.float64)
    assert drawn(logits, ones, torch.tensor([0.0, 0.5, 1.0 - 2.0**-53], dtype=torch.float64)) == [8500] * 3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_give_no_token_and_cost_no_other_row_its_own(bad, temperature):
    logits = torch.zeros(4, 5000)
    logits[1, 4999], logits[2], logits[3, 3] = bad, -math.inf, 50.0
    temperatures = torch.full((4,), temperature, dtype=torch.float64)
    numbers = torch.zeros(4, dtype=torch.float64)
    # The number 0 draws the first token that weighs anything.
    assert drawn(logits, temperatures, numbers) == [0, -1, -1, 3 if temperature == 0.0 else 0]
