"""Reward models by TRL's trainer: from pairs of answers to a number for any answer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl.trainer.reward_config import RewardConfig as RewardArguments
from trl.trainer.reward_trainer import RewardTrainer as TrlRewardTrainer

from griffinlm.checkpoint.new_directory import new_directory
from griffinlm.checkpoint.tokenizer_files import copy_tokenizer
from griffinlm.evaluate.documents import DocumentError
from griffinlm.hf import GriffinForSequenceClassification
from griffinlm.train.alignment.config import RewardConfig
from griffinlm.train.alignment.rows import Pair, Split, parse_pair
from griffinlm.train.alignment.run import checkpoints_of, facts_of, run_to_end
from griffinlm.train.base import Base, TuningOutcome, prepare_libraries, tokenizer_for_trl
from griffinlm.train.tuning_trainer import TunedTrainer, common_arguments


class RewardTrainer(TunedTrainer, TrlRewardTrainer):
    """Bradley-Terry: -log sigmoid(r_chosen - r_rejected), mean over pairs."""


def train_reward(config: RewardConfig, report: Callable[[DocumentError], None] | None = None) -> TuningOutcome:
    """Trains a reward model r(prompt, answer) on pairs, with P(chosen is better) = sigmoid(r_chosen - r_rejected).

    r is a linear head on the hidden state of the answer's last token. A run goes on from its last complete checkpoint;
    `RewardModel` reads the result.

    Args:
        report: called with every bad row that is skipped.

    Raises:
        GriffinError: data, tokenizer or model cannot be used, the output is taken, was made by another run or cannot
            be written, or the loss is no number any more.
    """
    return run_to_end(config, parse_pair, config.data.row_tokens, build_trainer, _write, report)


def build_trainer(config: RewardConfig, base: Base, pairs: Split[Pair]) -> RewardTrainer:
    """TRL's trainer of a run.

    Raises:
        GriffinError: the model cannot be trained so.
    """
    arguments = RewardArguments(
        **common_arguments(config),
        max_length=config.data.row_tokens,
        center_rewards_coefficient=config.centering or None,
    )
    prepare_libraries(arguments.n_gpu)
    torch.manual_seed(config.seed)  # of the head's first values
    model = GriffinForSequenceClassification.from_pretrained(base.checkpoint.path, dtype=torch.float32, num_labels=1)
    return RewardTrainer(
        config,
        model,
        arguments,
        _dataset(pairs.train),
        _dataset(pairs.held_out) if pairs.held_out else None,
        tokenizer_for_trl(base.tokenizer_directory),
        checkpoints_of(config),
        {"run": facts_of(config, base, pairs.train)},
    )


def _dataset(pairs: list[Pair]) -> Dataset:
    return Dataset.from_dict(
        {
            "chosen_ids": [pair.prompt + pair.chosen for pair in pairs],
            "rejected_ids": [pair.prompt + pair.rejected for pair in pairs],
        }
    )


def _write(base: Base, model: Any, result: Path) -> None:
    with new_directory(result) as directory:
        model.save_pretrained(str(directory))
        copy_tokenizer(base.tokenizer_directory, directory)
