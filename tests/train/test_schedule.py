"""The learning rate at the steps that its formula is known at."""

import math

import pytest

from griffinlm.train.schedule import learning_rate_factor


def factors(config) -> list[float]:
    return [learning_rate_factor(config, step) for step in range(config.num_steps + 1)]


def test_warm_up_rises_to_one_in_equal_steps(run):
    config = run("schedule.warm_up_steps=4", "schedule.kind=constant")
    assert factors(config) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]


def test_cosine_falls_from_one_to_the_final_share(run):
    config = run("schedule.kind=cosine", "schedule.warm_up_steps=2", "schedule.final_share=0.2")
    expected = [0.5, 1.0, *(0.2 + 0.8 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(5))]
    assert factors(config) == pytest.approx(expected, abs=1e-12)
    assert factors(config)[-1] == pytest.approx(0.2)


def test_wsd_is_flat_and_falls_as_one_minus_the_square_root(run):
    config = run("schedule.warm_up_steps=1", "schedule.decay_steps=4", "schedule.final_share=0.0")
    assert factors(config) == pytest.approx([1, 1, 1, 1 - math.sqrt(0.25), 1 - math.sqrt(0.5), 1 - math.sqrt(0.75), 0])


def test_wsd_decays_over_the_last_stage_where_nothing_else_is_said(run):
    assert factors(run()) == factors(run("schedule.decay_steps=2"))
