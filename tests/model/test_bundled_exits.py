"""The recursive model that comes with the package: its exits fit it, and know where its first loop is right."""

from pathlib import Path

import pytest
import torch

import griffinlm
from griffinlm.checkpoint.exits import read_exits
from griffinlm.loading import find_model
from griffinlm.model.exits import recorded_exits

STORY = """Anna had a small boat. One morning she went to the lake with her father. The sun was warm and the water was
blue. "Can we go to the other side?" she asked. Her father smiled and said, "Yes, but we must be careful." They sat in
the boat and went over the water. On the other side they saw a big tree with red apples. Anna was very happy."""
LICENSE = Path(__file__).parents[2] / "LICENSE"
MOST_TOKENS = 2000
LEAST_GAIN = 0.03
"""By which tokens that may leave are right more often than all; on 2,000 tokens chance is a third of it."""


@pytest.fixture(scope="module")
def measured():
    """Of a text: the share of tokens that may leave, and the shares that are right, of all and of those that may."""
    model = griffinlm.load("eyas-recursive", engine="torch")
    exits = read_exits(find_model("eyas-recursive"), model.config)
    assert exits is not None
    assert model.config.skips

    def measure(text: str) -> tuple[float, float, float]:
        ids = torch.tensor([[model.tokenizer.bos_id, *model.tokenizer.encode(text)][:MOST_TOKENS]])
        recorded = recorded_exits(model.engine.model, ids)
        may_leave = (exits.confidence(recorded.normed.numpy()) >= exits.thresholds)[:, 0]
        is_right = recorded.is_right.numpy()[:, 0]
        return may_leave.mean(), is_right.mean(), is_right[may_leave].mean()

    return measure


def test_of_the_tokens_of_a_story_that_may_leave_most_are_right_and_they_are_more_than_a_tenth(measured):
    may_leave, _, is_right = measured(STORY.replace("\n", " "))
    assert may_leave > 0.1
    assert is_right > 0.75


def test_tokens_that_may_leave_are_right_more_often_than_all(measured):
    may_leave, is_right, is_right_of_these = measured(LICENSE.read_text(encoding="utf-8"))
    assert may_leave > 0.1
    assert is_right_of_these > max(0.75, is_right + LEAST_GAIN)
