"""Sampling: each rule on hand-made logits, the draw against its distribution, and its independence of memory."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from griffinlm.generation.candidates import candidates, draw, log_softmax, uniforms
from griffinlm.generation.parameters import SamplingError, SamplingParameters
from griffinlm.generation.sampling import Sampler, choose_together

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


def kept(**parameters) -> list[int]:
    return list(candidates(LOGITS, SamplingParameters(**parameters))[0])


def probabilities(**parameters) -> np.ndarray:
    ids, weights = candidates(LOGITS, SamplingParameters(**parameters))
    assert list(ids) == [0, 1, 2, 3]
    return weights / weights.sum()


def test_no_cut_gives_the_softmax():
    np.testing.assert_allclose(probabilities(), [0.1, 0.4, 0.2, 0.3], rtol=1e-6)


def test_temperature_divides_the_logits():
    halved = np.array([0.1, 0.4, 0.2, 0.3]) ** 2
    np.testing.assert_allclose(probabilities(temperature=0.5), halved / halved.sum(), rtol=1e-5)


def test_top_k_keeps_the_best():
    assert kept(top_k=1) == [1]
    assert kept(top_k=3) == [1, 2, 3]
    assert kept(top_k=100) == [0, 1, 2, 3]


def test_top_p_keeps_the_fewest_that_reach_the_mass():
    assert kept(top_p=0.39) == [1]
    assert kept(top_p=0.41) == [1, 3]
    assert kept(top_p=0.75) == [1, 2, 3]
    assert kept(top_p=1.0) == [0, 1, 2, 3]


def test_min_p_is_relative_to_the_best():
    assert kept(min_p=0.6) == [1, 3]
    assert kept(min_p=0.0) == [0, 1, 2, 3]


def test_cuts_never_leave_nothing():
    for parameters in ({"top_p": 1e-9}, {"min_p": 1.0}, {"top_k": 1}):
        assert kept(**parameters) == [1]


def test_greedy_takes_the_lowest_of_equals():
    assert Sampler(SamplingParameters(temperature=0)).choose(np.array([0, 2, 2, 1], np.float32)) == 1


def test_repetition_penalty_counts_prompt_and_answer():
    sampler = Sampler(SamplingParameters(temperature=0, repetition_penalty=2.0), seen=[1])
    logits = np.array([0.0, 3.0, 2.0, -1.0], np.float32)
    assert sampler.choose(logits) == 2  # 3 / 2 < 2
    assert sampler.choose(logits) == 1  # 3 / 2 > 2 / 2
    np.testing.assert_array_equal(logits, np.array([0.0, 3.0, 2.0, -1.0], np.float32))


def test_repetition_penalty_pushes_negative_logits_down():
    sampler = Sampler(SamplingParameters(temperature=0, repetition_penalty=2.0), seen=[0])
    assert sampler.choose(np.array([-1.0, -1.5], np.float32)) == 1


def test_presence_and_frequency_count_the_answer_only():
    logits = np.array([1.0, 0.8, 0.0], np.float32)
    presence = Sampler(SamplingParameters(temperature=0, presence_penalty=0.3), seen=[0, 0, 0])
    assert [presence.choose(logits) for _ in range(4)] == [0, 1, 0, 0]
    frequency = Sampler(SamplingParameters(temperature=0, frequency_penalty=0.3), seen=[0, 0, 0])
    assert [frequency.choose(logits) for _ in range(4)] == [0, 1, 0, 1]


def test_penalties_are_the_sum_over_what_was_said():
    prompt, rows = [3, 3, 9], np.random.default_rng(2).standard_normal((40, 12)).astype(np.float32)
    parameters = {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.25}
    sampler = Sampler(SamplingParameters(temperature=0, **parameters), prompt)
    answer: list[int] = []
    for row in rows:
        expected = row.astype(np.float64)
        for token in {*prompt, *answer}:
            expected[token] *= 1.3 if expected[token] < 0 else 1 / 1.3
        for token in set(answer):
            expected[token] -= 0.4 + 0.25 * answer.count(token)
        answer.append(sampler.choose(row))
        assert answer[-1] == expected.argmax()


def test_logit_bias_is_added_before_all_else():
    logits = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    greedy = SamplingParameters(temperature=0)
    assert Sampler(greedy, logit_bias={1: 2.5}).choose(logits) == 1
    assert Sampler(greedy, logit_bias={3: -100}).choose(logits) == 2
    assert Sampler(greedy, logit_bias={7: 100}, num_choices=4).choose(logits) == 3, "never chosen, whatever its bias"
    penalised = SamplingParameters(temperature=0, repetition_penalty=2.0)
    assert Sampler(penalised, seen=[3], logit_bias={3: 2.5}).choose(logits) == 3, "(4 + 2.5) / 2 is above 3"


def test_end_tokens_are_held_back_until_min_tokens():
    sampler = Sampler(SamplingParameters(temperature=0), end_ids=[2], min_tokens=2)
    logits = np.array([0.0, 1.0, 5.0], np.float32)
    assert [sampler.choose(logits) for _ in range(3)] == [1, 1, 2]


def test_same_seed_and_place_give_the_same_token_whatever_came_before():
    random = np.random.default_rng(0)
    rows = random.standard_normal((20, 50)).astype(np.float32)
    whole = Sampler(SamplingParameters(seed=7))
    tokens = [whole.choose(row) for row in rows]
    later = Sampler(SamplingParameters(seed=7), first_position=12)
    assert [later.choose(row) for row in rows[12:]] == tokens[12:]
    assert [Sampler(SamplingParameters(seed=8), first_position=i).choose(r) for i, r in enumerate(rows)] != tokens


def test_a_number_is_the_first_of_philox_with_the_seed_as_key_and_the_position_as_counter():
    for seed, first in ((0, 0), (7, 12), (2**63 - 1, 2**64 - 70)):
        numbers = list(itertools.islice(uniforms(seed, first), 150))
        for position, number in enumerate(numbers, first):
            assert number == np.random.Generator(np.random.Philox(key=seed, counter=position)).random()


def test_a_replayed_sampler_draws_the_numbers_behind_the_tokens_it_took_over():
    rows = np.random.default_rng(0).standard_normal((90, 50)).astype(np.float32)
    whole, later = Sampler(SamplingParameters(seed=7)), Sampler(SamplingParameters(seed=7))
    tokens = [whole.choose(row) for row in rows]
    assert [later.choose(row) for row in rows[:3]] == tokens[:3]
    later.replay(tokens[3:80])
    assert [later.choose(row) for row in rows[80:]] == tokens[80:]


def any_sampler(draw_from) -> dict:
    """Arguments of a sampler, with or without each of its rules."""
    parameters = SamplingParameters(
        temperature=draw_from(st.sampled_from([0.0, 0.3, 1.0, 1.7])),
        top_k=draw_from(st.sampled_from([None, None, 1, 40])),
        top_p=draw_from(st.sampled_from([None, None, 0.5, 0.95])),
        min_p=draw_from(st.sampled_from([None, None, 0.1])),
        repetition_penalty=draw_from(st.sampled_from([1.0, 1.0, 1.3])),
        frequency_penalty=draw_from(st.sampled_from([0.0, 0.0, 0.5])),
        seed=draw_from(st.integers(0, 2**63 - 1)),
    )
    return {
        "parameters": parameters,
        "seen": [3, 5],
        "first_position": draw_from(st.integers(0, 10_000)),
        "end_ids": [0, 2],
        "min_tokens": draw_from(st.sampled_from([0, 2])),
        "num_alternatives": draw_from(st.sampled_from([None, 2])),
        "logit_bias": draw_from(st.sampled_from([{}, {4: 2.5}])),
    }


@given(st.data())
def test_tokens_chosen_together_are_bit_for_bit_those_chosen_alone(data):
    num_rows = data.draw(st.integers(1, 9))
    width, num_choices = data.draw(st.sampled_from([(40, None), (300, 290), (1031, 1025), (60_001, 60_000)]))
    arguments = [any_sampler(data.draw) | {"num_choices": num_choices} for _ in range(num_rows)]
    together, alone = ([Sampler(**one) for one in arguments] for _ in range(2))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    for _ in range(3):
        logits = (random.standard_normal((num_rows, width)) * 3).astype(np.float32)
        before = logits.copy()
        tokens = choose_together(together, logits)
        assert tokens == [sampler.choose(row) for sampler, row in zip(alone, logits, strict=True)]
        assert [one.latest for one in together] == [one.latest for one in alone]
        np.testing.assert_array_equal(logits, before)


def test_a_row_that_cannot_be_chosen_from_costs_no_other_its_token():
    logits = np.random.default_rng(1).standard_normal((4, 100)).astype(np.float32)
    logits[1, 7], logits[3] = np.nan, -np.inf
    found = choose_together([Sampler(SamplingParameters(seed=row)) for row in range(4)], logits)
    assert [isinstance(one, SamplingError) for one in found] == [False, True, False, True]
    for row in (0, 2):
        assert found[row] == Sampler(SamplingParameters(seed=row)).choose(logits[row])


def test_without_a_seed_two_samplers_differ():
    flat = np.zeros(100_000, np.float32)
    assert Sampler(SamplingParameters()).choose(flat) != Sampler(SamplingParameters()).choose(flat)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8), st.floats(0, 1, exclude_max=True))
def test_draw_gives_a_token_with_mass(weights, number):
    array = np.array(weights, np.float32)
    assume(array.max() > 0)
    assert array[draw(array[None], np.array([number]))[0]] > 0


def test_draws_follow_the_distribution():
    weights = probabilities()
    num_draws = 20_000
    tokens = draw(np.tile(weights, (num_draws, 1)), np.fromiter(uniforms(3, 0), float, num_draws))
    observed = np.bincount(tokens, minlength=4) / len(tokens)
    deviation = np.sqrt(weights * (1 - weights) / len(tokens))
    assert (np.abs(observed - weights) < 5 * deviation).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [[0.0, np.nan, 1.0], [-np.inf, -np.inf, -np.inf]])
def test_logits_that_choose_nothing_are_refused(temperature, bad):
    sampler = Sampler(SamplingParameters(temperature=temperature, top_p=0.9, seed=1))
    with pytest.raises(SamplingError, match=r"^the best logit, of token \d, is (nan|-inf); it must be finite$"):
        sampler.choose(np.array(bad, np.float32))


def test_log_probability_is_the_models_own():
    sampler = Sampler(SamplingParameters(temperature=0, repetition_penalty=9.0), seen=[1], num_alternatives=2)
    token = sampler.choose(LOGITS)
    assert sampler.latest is not None
    assert sampler.latest.token == token
    assert sampler.latest.log_probability == pytest.approx(float(log_softmax(LOGITS)[token]))
    assert [t for t, _ in sampler.latest.alternatives] == [1, 3]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_k", 0),
        ("top_k", 2.5),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("presence_penalty", float("inf")),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", True),
    ],
)
def test_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(SamplingError, match=f"^{name} is "):
        SamplingParameters(**{name: value})
