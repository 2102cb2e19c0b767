"""The fast way from logits to a draw keeps what the definition keeps and draws what it draws, at any size."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from griffinlm.generation.candidates import (
    TOTAL_TOLERANCE,
    candidates,
    draw,
    log_normaliser,
    log_softmax,
)
from griffinlm.generation.parameters import SamplingParameters
from griffinlm.generation.sampling import Sampler

ROUNDING = 1e-12
"""Relative; sums of float64 in different orders lie less apart."""


def drawn(weights: np.ndarray, number: float) -> int:
    """Of one row."""
    return int(draw(weights[None], np.array([number]))[0])


def kept_by_definition(logits: np.ndarray, parameters: SamplingParameters) -> np.ndarray:
    """The steps one after the other over the whole vocabulary, in float64: probabilities, NaN where cut."""
    kept = np.ones(len(logits), bool)
    if parameters.top_k is not None and parameters.top_k < len(logits):
        kept &= logits >= np.sort(logits)[-parameters.top_k]
    scaled = (logits.astype(np.float64) - logits.max()) / parameters.temperature
    weights = np.where(kept, np.exp(scaled), 0.0)
    weights /= weights.sum()
    if parameters.top_p is not None and parameters.top_p < 1.0:
        order = np.argsort(-logits, kind="stable")
        num_kept = int(np.searchsorted(np.cumsum(weights[order]), parameters.top_p)) + 1
        kept[order[num_kept:]] = False
    if parameters.min_p is not None:
        kept &= weights >= parameters.min_p * weights.max()
    weights[~kept] = np.nan
    return weights / np.nansum(weights)


def near(parameters: SamplingParameters) -> list[SamplingParameters]:
    """The same parameters with the shares moved by less than rounding matters."""
    values = {name: getattr(parameters, name) for name in ("temperature", "top_k")}
    return [
        SamplingParameters(
            **values,
            top_p=None if parameters.top_p is None else min(parameters.top_p * (1 + by_p), 1.0),
            min_p=None if parameters.min_p is None else min(parameters.min_p * (1 + by_min), 1.0),
        )
        for by_p in (0.0, -ROUNDING, ROUNDING)
        for by_min in (0.0, -ROUNDING, ROUNDING)
    ]


def assert_as_defined(logits: np.ndarray, parameters: SamplingParameters) -> None:
    """Kept ids are the definition's, but for shares within `ROUNDING`; probabilities agree to float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids, weights = candidates(logits, parameters)
    found = np.full(len(logits), np.nan)
    found[np.asarray(ids)] = weights / weights.sum(dtype=np.float64)
    for one in near(parameters):
        expected = kept_by_definition(logits, one)
        if np.array_equal(np.isnan(found), np.isnan(expected)):
            assert np.nanmax(np.abs(found - expected)) < 2e-6
            return
    raise AssertionError(f"{np.flatnonzero(~np.isnan(found))} kept; expected {np.flatnonzero(~np.isnan(expected))}")


@st.composite
def any_logits(draw_from) -> np.ndarray:
    """From flat to steep, with many equals or none, in lengths around and past those of blocks."""
    random = np.random.default_rng(draw_from(st.integers(0, 2**32)))
    size = draw_from(st.sampled_from([1, 2, 3, 17, 255, 256, 257, 700]))
    values = random.standard_normal(size) * draw_from(st.sampled_from([0.0, 0.1, 1.0, 4.0, 30.0]))
    values = values.round(draw_from(st.sampled_from([0, 1, 8])))
    return (values + draw_from(st.sampled_from([-20.0, 0.0, 7.5]))).astype(np.float32)


shares = st.floats(0, 1, exclude_min=True) | st.sampled_from([0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.999, 1.0])
any_parameters = st.builds(
    SamplingParameters,
    temperature=st.floats(0.1, 10) | st.sampled_from([0.5, 1.0]),
    top_k=st.none() | st.integers(1, 60) | st.sampled_from([256, 700]),
    top_p=st.none() | shares,
    min_p=st.none() | shares | st.just(0.0),
)


@given(any_logits(), any_parameters)
def test_candidates_are_those_of_the_definition(logits, parameters):
    assert_as_defined(logits, parameters)


@given(any_logits(), any_parameters, st.floats(0, 1, exclude_max=True))
def test_drawn_token_is_the_definitions_but_for_rounding_at_a_step(logits, parameters, number):
    ids, weights = candidates(logits, parameters)
    token = ids[drawn(weights, number)]
    expected = np.nan_to_num(kept_by_definition(logits, parameters))
    reached = np.cumsum(expected)
    assert reached[token] - expected[token] - TOTAL_TOLERANCE <= number <= reached[token] + TOTAL_TOLERANCE
    assert weights[list(ids).index(token)] > 0


CUTS = [
    {},
    {"temperature": 0.7},
    {"top_k": 50},
    {"top_p": 0.5},
    {"top_p": 0.9},
    {"top_p": 0.999},
    {"min_p": 0.05},
    {"temperature": 0.8, "top_k": 5000, "top_p": 0.95, "min_p": 0.01},
]


@pytest.mark.parametrize("shape", ["equal", "flat", "normal", "power"])
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_candidates_of_a_large_vocabulary_are_those_of_the_definition(cut, shape):
    random = np.random.default_rng(5)
    num_tokens = 100_003
    logits = {
        "equal": np.zeros(num_tokens),
        "flat": random.standard_normal(num_tokens) * 0.3,
        "normal": random.standard_normal(num_tokens) * 4,
        "power": random.permutation(-1.5 * np.log(np.arange(1, num_tokens + 1))) + 20,
    }[shape].astype(np.float32)
    assert_as_defined(logits, SamplingParameters(**cut))
    exact = np.exp(logits.astype(np.float64) - logits.max()).sum()
    total = candidates(logits, SamplingParameters())[1].sum()
    assert abs(total / exact - 1) < TOTAL_TOLERANCE / 5


@pytest.mark.parametrize("num_reached", [1, 2, 10, 100, 300])
def test_a_share_a_hair_past_what_some_tokens_reach_takes_one_more(num_reached):
    logits = (-1.5 * np.log(np.arange(1, 50_001))).astype(np.float32)
    weights = np.exp(logits.astype(np.float64))
    share = weights[:num_reached].sum() / weights.sum()
    for nudge, num_kept in ((-1e-10, num_reached), (1e-10, num_reached + 1)):
        ids, _ = candidates(logits, SamplingParameters(top_p=share * (1 + nudge)))
        assert list(ids) == list(range(num_kept))


@pytest.mark.parametrize("cut", [{}, {"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.5}], ids=str)
def test_extreme_temperatures_are_the_best_token_and_the_uniform_draw(cut):
    logits = np.array([3.0, -1e3, 4.0, 4.0, -np.inf], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids, weights = candidates(logits, SamplingParameters(temperature=5e-324, **cut))
        assert np.asarray(ids)[weights > 0].tolist() == [2, 3]
        ids, weights = candidates(logits, SamplingParameters(temperature=1e308, **cut))
    assert weights[weights > 0].tolist() == [1.0] * (weights > 0).sum()
    assert np.asarray(ids)[weights > 0].tolist() == ([2, 3] if "top_k" in cut else [0, 1, 2, 3])


def test_a_draw_is_exact_across_blocks():
    weights = np.zeros(1000, np.float32)
    weights[[0, 255, 256, 300, 700, 701, 999]] = [1, 2, 1, 1, 3, 4, 4]
    expected = [0, 255, 255, 256, 300, 700, 700, 700, 701, 701, 701, 701, 999, 999, 999, 999]
    assert [drawn(weights, sixteenth / 16) for sixteenth in range(16)] == expected
    assert [drawn(weights, (sixteenth + 0.99) / 16) for sixteenth in range(16)] == expected


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 100_000)])
def test_log_softmax_is_that_of_float64(shape):
    logits = (np.random.default_rng(1).standard_normal(shape) * 5 + 12).astype(np.float32)
    wide = logits.astype(np.float64)
    normaliser = np.log(np.exp(wide).sum(axis=-1))
    np.testing.assert_allclose(log_normaliser(logits), normaliser, rtol=0, atol=1e-6)
    np.testing.assert_allclose(log_softmax(logits), wide - normaliser[..., None], rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_alternatives", [0, 1, 3, 10])
def test_alternatives_are_the_best_in_order_and_of_equals_the_first(num_alternatives):
    logits = np.array([1.0, 5.0, 2.0, 5.0, 5.0, 0.0], np.float32)
    sampler = Sampler(SamplingParameters(temperature=0), num_alternatives=num_alternatives)
    sampler.choose(logits)
    assert sampler.latest is not None
    assert [token for token, _ in sampler.latest.alternatives] == [1, 3, 4, 2, 0, 5][:num_alternatives]
