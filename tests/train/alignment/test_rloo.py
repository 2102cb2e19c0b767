"""REINFORCE leave-one-out: advantages by the formula, the gradient of the paper, and a reward that is learned."""

import json
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra train")

import numpy as np
import torch
from tolerances import assert_agree
from torch import Tensor

from griffinlm.hf import GriffinForCausalLM
from griffinlm.train.alignment.config import RlooConfig
from griffinlm.train.alignment.judge import repeated_runs
from griffinlm.train.alignment.reward_model import RewardModel
from griffinlm.train.alignment.rloo import RlooTrainer, build_trainer, train_rloo
from griffinlm.train.alignment.rows import parse_prompt, read_split
from griffinlm.train.base import open_base
from griffinlm.train.errors import TrainError

from .alignment import Aligned

BETA, TEMPERATURE, PENALTY, NUM_ANSWERS = 0.3, 0.8, 2.5, 3
CHANGES = (
    f"kl_coefficient={BETA}",
    f"temperature={TEMPERATURE}",
    f"unended_penalty={PENALTY}",
    f"num_answers={NUM_ANSWERS}",
    "batch_rows=6",
    "max_answer_tokens=10",
)


def prepared(config: RlooConfig) -> RlooTrainer:
    base = open_base(config.model)
    prompts = read_split(config, base.tokenizer, parse_prompt, config.data.row_tokens - config.max_answer_tokens)
    return build_trainer(config, base, prompts)


def log_probability(model: GriffinForCausalLM, prompt: list[int], answer: list[int]) -> Tensor:
    """log p(answer | prompt) at the temperature, the row alone."""
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
    return torch.log_softmax(logits, dim=-1)[range(len(answer)), answer].sum()


def rows_of(batch: dict[str, Tensor]) -> list[tuple[list[int], list[int]]]:
    """Prompts and answers without their padding."""
    return [
        tuple(batch[name][row][batch[f"{name.removesuffix('_ids')}_mask"][row] != 0].tolist() for name in names)
        for row in range(len(batch["prompt_ids"]))
        for names in [("prompt_ids", "completion_ids")]
    ]


@pytest.fixture
def moved(run: Aligned, reward_model: Path) -> RlooTrainer:
    """The trainer of a policy that is no longer the model it began from."""
    trainer = prepared(run(RlooConfig, *CHANGES, f"reward={reward_model}"))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
    trainer.model.train()
    return trainer


def batch_of(trainer: RlooTrainer) -> dict[str, Tensor]:
    prompts = [trainer.train_dataset[place] for place in range(2) for _ in range(NUM_ANSWERS)]
    return trainer._generate_and_score_completions(prompts)


def test_advantages_are_rewards_less_kl_less_the_mean_of_the_others(moved: RlooTrainer, reward_model: Path):
    batch, judge = batch_of(moved), RewardModel(reward_model)
    base = GriffinForCausalLM.from_pretrained(moved.model.config.name_or_path, dtype=torch.float32)
    end_ids, rewards = judge.tokenizer.end_ids, []
    for prompt, answer in rows_of(batch):
        with torch.no_grad():
            ratio = log_probability(moved.model, prompt, answer) - log_probability(base, prompt, answer)
        assert abs(ratio) > 1e-3, "policy and base are the same; the KL term would not show"
        reward = judge.score([prompt + answer])[0] - (0.0 if answer[-1] in end_ids else PENALTY)
        rewards.append(reward - BETA * float(ratio))
    groups = np.array(rewards).reshape(2, NUM_ANSWERS)
    others = (groups.sum(axis=1, keepdims=True) - groups) / (NUM_ANSWERS - 1)
    assert_agree(batch["advantages"], (groups - others).ravel(), "model, narrow window", "float32", "torch")


def test_the_gradient_is_that_of_advantage_times_log_probability(moved: RlooTrainer):
    batch = batch_of(moved)
    loss = moved.compute_loss(moved.model, batch)
    names = [name for name, _ in moved.model.named_parameters()]
    found = torch.autograd.grad(loss, list(moved.model.parameters()))
    by_hand = -sum(
        advantage * log_probability(moved.model, prompt, answer)
        for advantage, (prompt, answer) in zip(batch["advantages"], rows_of(batch), strict=True)
    ) / len(batch["advantages"])
    expected = torch.autograd.grad(by_hand, list(moved.model.parameters()))
    for name, one, other in zip(names, found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=name)


def test_a_policy_learns_to_write_some_tokens_and_no_others(run: Aligned, reward_model: Path):
    changes = ("batch_rows=32", "num_answers=8", "max_answer_tokens=8", "kl_coefficient=0.0", "steps=12")
    trainer = prepared(run(RlooConfig, *changes, f"reward={reward_model}", "optimizer.learning_rate=3e-2"))
    shares = []

    def share(completion_ids: list[list[int]], **_) -> list[float]:
        found = [sum(token < 150 for token in answer) / len(answer) for answer in completion_ids]
        shares.append(sum(found) / len(found))
        return found

    trainer.reward_funcs = [share]
    trainer.train()
    assert shares[0] < 0.65
    assert min(shares[10:12]) > 0.9


def test_a_strong_kl_term_holds_the_policy_near_its_base(run: Aligned, reward_model: Path):
    def last_kl(beta: float) -> float:
        changes = (
            f"kl_coefficient={beta}",
            "steps=8",
            "max_answer_tokens=8",
            f"reward={reward_model}",
            "batch_rows=16",
        )
        return train_rloo(run(RlooConfig, *changes, output=f"beta-{beta}")).figures["kl"]

    assert abs(last_kl(20.0)) < abs(last_kl(1e-3))


def test_the_log_tells_what_a_hacked_reward_would_show(run: Aligned, reward_model: Path):
    config = run(
        RlooConfig, f"reward={reward_model}", f'watched={{second="{reward_model}"}}', "max_answer_tokens=8", "steps=1"
    )
    train_rloo(config)
    lines = (config.output / "log.jsonl").read_text(encoding="utf-8").splitlines()
    entry = next(entry for line in lines if "loss" in (entry := json.loads(line)))
    told = {"reward", "kl", "entropy", "completions/mean_length", "answers/ended", "answers/repeated_runs"}
    assert told < entry.keys()
    assert entry["rewards/reward/mean"] == entry["rewards/second/mean"] == entry["reward"]
    assert entry["kl"] == pytest.approx(0.0, abs=1e-4)


def test_a_judge_of_another_tokenizer_is_refused(run: Aligned, reward_model: Path, tmp_path: Path):
    for file in reward_model.iterdir():
        (tmp_path / "judge").mkdir(exist_ok=True)
        (tmp_path / "judge" / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "judge" / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace("<unused0>", "<other0>"), encoding="utf-8")
    values = json.loads(path.read_text(encoding="utf-8"))
    values["added_tokens"][-1]["content"] += "x"
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(TrainError, match=r"the tokenizer of .*judge is another one"):
        prepared(run(RlooConfig, f"reward={tmp_path / 'judge'}", "max_answer_tokens=8"))


def test_repeated_runs_are_the_share_of_runs_seen_before():
    assert repeated_runs([1, 2, 3]) == 0.0
    assert repeated_runs([1, 2, 3, 4, 5]) == 0.0
    assert repeated_runs([7] * 8) == pytest.approx(4 / 5)
    assert repeated_runs([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
