"""Reward models: TRL's loss is Bradley-Terry's computed by hand, and what is saved judges as what was trained."""

from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra train")

import numpy as np
import torch
from tolerances import assert_agree

from griffinlm.train.alignment.config import RewardConfig
from griffinlm.train.alignment.reward import build_trainer, train_reward
from griffinlm.train.alignment.reward_model import RewardModel
from griffinlm.train.alignment.rows import Pair, parse_pair, read_split
from griffinlm.train.base import open_base
from griffinlm.train.errors import TrainError

from .alignment import Aligned


def pairs_of(config: RewardConfig) -> list[Pair]:
    tokenizer = open_base(config.model).tokenizer
    return read_split(config, tokenizer, parse_pair, config.data.row_tokens).train


def margins(model: RewardModel, pairs: list[Pair]) -> np.ndarray:
    chosen = model.score([pair.prompt + pair.chosen for pair in pairs])
    return np.array(chosen) - np.array(model.score([pair.prompt + pair.rejected for pair in pairs]))


def test_the_loss_is_that_of_bradley_and_terry(run: Aligned, reward_model: Path):
    config = run(RewardConfig, "centering=0.5")
    base, pairs = open_base(config.model), pairs_of(config)[:5]
    split = read_split(config, base.tokenizer, parse_pair, config.data.row_tokens)
    trainer = build_trainer(config, base, split)
    model = RewardModel(reward_model)
    trainer.model.load_state_dict(model._model.state_dict())
    rows = [{"chosen_ids": p.prompt + p.chosen, "rejected_ids": p.prompt + p.rejected} for p in pairs]
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    sums = [sum(model.score([p.prompt + p.chosen, p.prompt + p.rejected])) for p in pairs]
    expected = np.log1p(np.exp(-margins(model, pairs))).mean() + 0.5 * np.square(sums).mean()
    assert_agree(loss.numpy(), np.float32(expected), "model", "float32", "torch")


def test_what_is_written_prefers_what_was_preferred(run: Aligned, reward_model: Path):
    assert (margins(RewardModel(reward_model), pairs_of(run(RewardConfig))) > 0).mean() > 0.95


def test_a_reward_does_not_depend_on_the_other_rows(run: Aligned, reward_model: Path):
    model, rows = RewardModel(reward_model), [pair.prompt + pair.chosen for pair in pairs_of(run(RewardConfig))]
    assert len(rows) > 32
    together = np.array(model.score(rows))
    assert_agree(together, np.array([model.score([row])[0] for row in rows]), "model", "float32", "torch")
    np.testing.assert_array_equal(model.score(rows), together)


def test_the_log_has_the_held_out_accuracy(run: Aligned):
    outcome = train_reward(run(RewardConfig, "steps=2"))
    assert 0 <= outcome.figures["eval_accuracy"] <= 1
    assert outcome.figures["num_held_out"] > 0


def test_what_is_no_reward_model_is_refused(tmp_path: Path, tiny_model_directory: Path):
    with pytest.raises(TrainError, match="there is no reward model"):
        RewardModel(tmp_path / "none")
    with pytest.raises(TrainError, match="is no reward model; it must have one score"):
        RewardModel(tiny_model_directory)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainError, match="empty is no reward model: "):
        RewardModel(tmp_path / "empty")
