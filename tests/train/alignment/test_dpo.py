"""Direct preference optimisation: TRL's loss is the paper's computed by hand, and preferences are learned."""

import pytest

pytest.importorskip("trl", reason="needs the extra train")

import numpy as np
import torch
from tolerances import assert_agree

from griffinlm.hf import GriffinForCausalLM
from griffinlm.train.alignment.config import DpoConfig
from griffinlm.train.alignment.dpo import build_trainer, train_dpo
from griffinlm.train.alignment.rows import parse_pair, read_split
from griffinlm.train.base import open_base

from .alignment import Aligned

BETA = 0.4


def log_probability(model: GriffinForCausalLM, prompt: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return float(torch.log_softmax(logits, dim=-1)[range(len(answer)), answer].sum())


def test_the_loss_is_that_of_the_paper(run: Aligned):
    config = run(DpoConfig, f"kl_coefficient={BETA}")
    base = open_base(config.model)
    split = read_split(config, base.tokenizer, parse_pair, config.data.row_tokens)
    trainer, pairs = build_trainer(config, base, split), split.train[:4]
    reference = GriffinForCausalLM.from_pretrained(base.checkpoint.path, dtype=torch.float32)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
        batch = trainer.data_collator([trainer.train_dataset[place] for place in range(4)])
        loss = trainer.compute_loss(trainer.model, batch)
    margins = [
        BETA
        * sum(
            sign
            * (log_probability(trainer.model, pair.prompt, answer) - log_probability(reference, pair.prompt, answer))
            for sign, answer in ((1, pair.chosen), (-1, pair.rejected))
        )
        for pair in pairs
    ]
    expected = np.log1p(np.exp(-np.array(margins))).mean()
    assert_agree(loss.detach(), np.float64(expected), "model", "float32", "torch")


def test_held_out_pairs_are_told_apart(run: Aligned):
    outcome = train_dpo(run(DpoConfig, "steps=12", "optimizer.learning_rate=3e-3"))
    assert outcome.figures["eval_rewards/accuracies"] == 1.0
    assert GriffinForCausalLM.from_pretrained(outcome.result).config.vocab_size > 0
