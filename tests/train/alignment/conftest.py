"""A run's configuration, and a reward model that likes hawks."""

from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra train")

from griffinlm.train.alignment.config import RewardConfig
from griffinlm.train.alignment.reward import train_reward

from .alignment import Aligned, alignment_run


@pytest.fixture
def run(tmp_path: Path, tiny_model_directory: Path) -> Aligned:
    return alignment_run(tmp_path, tiny_model_directory)


@pytest.fixture(scope="session")
def reward_model(tmp_path_factory: pytest.TempPathFactory, tiny_model_directory: Path) -> Path:
    """The directory of a model that was trained for some steps. Not to be written to."""
    run = alignment_run(tmp_path_factory.mktemp("reward"), tiny_model_directory)
    return train_reward(run(RewardConfig, "steps=30")).result
