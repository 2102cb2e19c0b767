"""Policies are compared in deviations of the rewards that the first one's answers get."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

from eyas_alignment_checks import together


def figures(*kinds):
    return {
        f"kind {index}": {"reward first": {"mean": mean, "sd": sd}, "tokens": {"mean": tokens}}
        for index, (mean, sd, tokens) in enumerate(kinds)
    }


def test_kinds_count_alike_and_the_first_policy_gives_the_deviation():
    # Answers at 0 ± 3 and 8 ± 3 have a deviation of 5, since their means lie 4 from 4.
    found = {"sft": figures((0.0, 3.0, 10), (8.0, 3.0, 30)), "rloo": figures((5.0, 1.0, 20), (8.0, 1.0, 30))}
    assert together(found) == {"rloo": {"reward first": pytest.approx(0.5), "tokens": pytest.approx(1.25)}}
