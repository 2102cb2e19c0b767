"""The device's sampler = the one of generation, on the same logits and the same uniform number."""

import math

import numpy as np
import pytest
import torch
from device import DEVICE
from hypothesis import given
from hypothesis import strategies as st

from griffinlm.executor import Draw
from griffinlm.generation.candidates import TOTAL_TOLERANCE, candidates, draw_tokens
from griffinlm.generation.parameters import SamplingParameters
from griffinlm.model import sampling

WIDTHS = (1, 2, 7, 255, 256, 257, 1000)


def parameters_of(draw: Draw) -> SamplingParameters:
    return SamplingParameters(**{name: value for name, value in draw._asdict().items() if name != "number"})


@st.composite
def draws(draw: st.DrawFn, vocab_size: int) -> Draw:
    return Draw(
        number=draw(st.floats(0.0, 1.0, exclude_max=True)),
        temperature=draw(st.sampled_from([0.0, 1e-30, 0.3, 1.0, 2.5, 1e30])),
        top_k=draw(st.one_of(st.none(), st.integers(1, 2 * vocab_size))),
        top_p=draw(st.one_of(st.none(), st.sampled_from([1e-9, 0.5, 0.95, 1.0]))),
        min_p=draw(st.one_of(st.none(), st.sampled_from([0.0, 0.05, 0.9, 1.0]))),
    )


@st.composite
def rows(draw: st.DrawFn) -> tuple[np.ndarray, list[Draw]]:
    """Logits with many equals and some that are never chosen, and how each row is drawn."""
    num_rows, vocab_size = draw(st.integers(1, 4)), draw(st.sampled_from(WIDTHS))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = draw(st.sampled_from([0.0, 1.0, 8.0])) * generator.standard_normal((num_rows, vocab_size))
    logits = np.round(logits, draw(st.sampled_from([0, 1, 6]))).astype(np.float32)
    forbidden = generator.random(logits.shape) < draw(st.sampled_from([0.0, 0.5]))
    forbidden[:, generator.integers(vocab_size)] = False
    logits[forbidden] = -np.inf
    return logits, [draw(draws(vocab_size)) for _ in range(num_rows)]


def is_next_to_a_step(logits: np.ndarray, draw: Draw) -> bool:
    """Whether the number lies where float32 sums of weights may give either of two tokens."""
    _, weights = candidates(logits, parameters_of(draw))
    reached = np.cumsum(weights, dtype=np.float64)
    return bool((np.abs(reached - draw.number * reached[-1]) <= TOTAL_TOLERANCE * reached[-1]).any())


def on_device(logits: np.ndarray, given: list[Draw]) -> tuple[torch.Tensor, sampling.Draws]:
    columns = sampling.to_draws(given, logits.shape[1])
    return torch.from_numpy(logits).to(DEVICE), sampling.Draws(*(column.to(DEVICE) for column in columns))


def drawn(logits: np.ndarray, given: list[Draw]) -> list[int]:
    return sampling.draw_tokens(*on_device(logits, given), any(map(sampling.cuts, given))).tolist()


@given(rows())
def test_picks_the_token_that_generation_picks(case):
    logits, wanted = case
    for row, (found, draw) in enumerate(zip(drawn(logits, wanted), wanted, strict=True)):
        one = logits[row : row + 1]
        if draw.temperature == 0:
            assert found == one.argmax()
            continue
        expected = draw_tokens(one, [parameters_of(draw)], [draw.number])[0]
        assert found == expected or is_next_to_a_step(one[0], draw)
        assert found in candidates(one[0], parameters_of(draw))[0]


@given(rows())
def test_the_tokens_kept_are_those_of_generation(case):
    logits, wanted = case
    given, draws = on_device(logits, wanted)
    kept = sampling._kept(given, draws.temperatures.clamp(*sampling.DRAWN_TEMPERATURES), draws).cpu()
    for row, draw in enumerate(wanted):
        if draw.temperature > 0:
            weighs = candidates(logits[row], parameters_of(draw))[1] > 0
            expected = np.asarray(candidates(logits[row], parameters_of(draw))[0])[weighs]
            found = np.flatnonzero(kept[row].numpy())
            heavy = np.exp((logits[row] - logits[row].max()) / np.float32(np.clip(draw.temperature, 1e-20, 1e20))) > 0
            assert found[heavy[found]].tolist() == expected.tolist()


@given(rows())
def test_rows_are_drawn_as_each_alone(case):
    logits, wanted = case
    alone = [drawn(logits[row : row + 1], [draw])[0] for row, draw in enumerate(wanted)]
    for row, (found, other) in enumerate(zip(drawn(logits, wanted), alone, strict=True)):
        assert found == other or is_next_to_a_step(logits[row], wanted[row])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_give_no_token_and_cost_no_other_row_its_own(bad):
    logits = np.zeros((3, 5), np.float32)
    logits[1, 2], logits[2] = bad, -np.inf
    assert drawn(logits, [Draw(0.0, temperature=0.0)] * 3) == [0, -1, -1]
    assert drawn(logits, [Draw(0.5, top_p=0.9)] * 3)[1:] == [-1, -1]
