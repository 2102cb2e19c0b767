"""Direct preference optimisation by TRL's trainer: a policy from pairs of answers, without a reward model."""

from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from trl.trainer.dpo_config import DPOConfig as DpoArguments
from trl.trainer.dpo_trainer import DPOTrainer as TrlDpoTrainer

from griffinlm.evaluate.documents import DocumentError
from griffinlm.hf import GriffinForCausalLM
from griffinlm.train.alignment.config import DpoConfig
from griffinlm.train.alignment.rows import Pair, Split, parse_pair
from griffinlm.train.alignment.run import checkpoints_of, facts_of, run_to_end, write_policy
from griffinlm.train.base import (
    Base,
    TuningOutcome,
    prepare_libraries,
    tokenizer_for_trl,
)
from griffinlm.train.tuning_trainer import TunedTrainer, common_arguments


class DpoTrainer(TunedTrainer, TrlDpoTrainer):
    """With m = log(policy / base) of an answer: -log sigmoid(beta (m_chosen - m_rejected)), mean over pairs."""

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        """Pairs come as tokens."""
        return dataset


def train_dpo(config: DpoConfig, report: Callable[[DocumentError], None] | None = None) -> TuningOutcome:
    """Trains a model to prefer the better answers of pairs more than the model that it begins from (arXiv 2305.18290).

    A run goes on from its last complete checkpoint.

    Args:
        report: called with every bad row that is skipped.

    Raises:
        GriffinError: data, tokenizer or model cannot be used, the output is taken, was made by another run or cannot
            be written, or the loss is no number any more.
    """
    return run_to_end(config, parse_pair, config.data.row_tokens, build_trainer, write_policy, report)


def build_trainer(config: DpoConfig, base: Base, pairs: Split[Pair]) -> DpoTrainer:
    """TRL's trainer of a run.

    Raises:
        GriffinError: the model cannot be trained so.
    """
    arguments = DpoArguments(
        **common_arguments(config),
        max_length=config.data.row_tokens,
        beta=config.kl_coefficient,
    )
    prepare_libraries(arguments.n_gpu)
    policy, reference = (
        GriffinForCausalLM.from_pretrained(base.checkpoint.path, dtype=torch.float32) for _ in range(2)
    )
    return DpoTrainer(
        config,
        policy,
        arguments,
        _dataset(pairs.train),
        _dataset(pairs.held_out) if pairs.held_out else None,
        tokenizer_for_trl(base.tokenizer_directory),
        checkpoints_of(config),
        {"run": facts_of(config, base, pairs.train)},
        ref_model=reference,
    )


def _dataset(pairs: list[Pair]) -> Dataset:
    return Dataset.from_dict(
        {
            "prompt_ids": [pair.prompt for pair in pairs],
            "chosen_ids": [pair.chosen for pair in pairs],
            "rejected_ids": [pair.rejected for pair in pairs],
        }
    )
