"""The recursive model that comes with the package: its exits fit it, and are right on a text that none has seen."""

import torch

import griffinlm
from griffinlm.checkpoint.exits import read_exits
from griffinlm.loading import find_model
from griffinlm.model.exits import recorded_exits

STORY = """Anna had a small boat. One morning she went to the lake with her father. The sun was warm and the water was
blue. "Can we go to the other side?" she asked. Her father smiled and said, "Yes, but we must be careful." They sat in
the boat and went over the water. On the other side they saw a big tree with red apples. Anna was very happy."""


def test_of_the_tokens_that_may_leave_most_are_right_and_they_are_more_than_a_tenth():
    model = griffinlm.load("eyas-recursive", engine="torch")
    exits = read_exits(find_model("eyas-recursive"), model.config)
    assert exits is not None
    assert model.config.skips
    ids = torch.tensor([[model.tokenizer.bos_id, *model.tokenizer.encode(STORY.replace("\n", " "))]])
    griffin = model.engine.model
    recorded = recorded_exits(griffin, ids)
    may_leave = (exits.confidence(recorded.normed.numpy()) >= exits.thresholds)[:, 0]
    is_right = recorded.is_right.numpy()[:, 0]
    assert may_leave.mean() > 0.1
    assert is_right[may_leave].mean() > max(0.75, is_right.mean())
