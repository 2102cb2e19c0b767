"""Runs on preferences and rewards that were cut off end with the bits of unbroken ones, and never go on another's."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra train")

from griffinlm.train.alignment.config import DpoConfig, RewardConfig, RlooConfig
from griffinlm.train.alignment.dpo import train_dpo
from griffinlm.train.alignment.reward import train_reward
from griffinlm.train.alignment.rloo import train_rloo
from griffinlm.train.errors import TrainError

from .alignment import Aligned

KINDS: dict[str, tuple[type, Callable[..., Any], tuple[str, ...]]] = {
    "reward": (RewardConfig, train_reward, ()),
    "dpo": (DpoConfig, train_dpo, ()),
    "rloo": (RlooConfig, train_rloo, ("max_answer_tokens=8", "num_answers=2", "rows_per_device=2")),
}


@pytest.mark.parametrize("name", KINDS)
def test_resumed_equals_uninterrupted_to_the_bit(run: Aligned, reward_model: Path, name: str):
    kind, train, changes = KINDS[name]
    # Step 3 lies behind the first pass.
    changes = (*changes, "steps=6", "sources.rows.max_rows=7", "checkpoints={every_steps=3, num_kept=2}")
    if kind is RlooConfig:
        changes = (*changes, f"reward={reward_model}")
    whole = train(run(kind, *changes, output="whole"))
    cut = run(kind, *changes, output="cut")
    kept = Path("checkpoints") / "step-3"
    shutil.copytree(whole.result.parent / kept, cut.output / kept)
    resumed = train(cut)
    weights = "model.safetensors"
    assert (resumed.result / weights).read_bytes() == (whole.result / weights).read_bytes()


def test_a_checkpoint_of_another_run_is_refused(run: Aligned, reward_model: Path, tmp_path: Path):
    changes = ("max_answer_tokens=8", "steps=1", "checkpoints.every_steps=1")
    shutil.rmtree(train_rloo(run(RlooConfig, *changes, f"reward={reward_model}")).result)
    other = train_reward(run(RewardConfig, output="other")).result
    with pytest.raises(TrainError, match="another kl_coefficient, another judges"):
        train_rloo(run(RlooConfig, *changes, f"reward={other}", "kl_coefficient=0.5"))
