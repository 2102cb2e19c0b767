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

    trainer.reward_funcs[0] = share
    trainer.train()
    assert shares[0] < 0.65
    assert min(shares[10:12]) > 0.9


RULES = """
from beside import LETTER


def letters(row, answer):
    assert set(row) == {"prompt", "chosen", "rejected"}
    return answer.count(LETTER) / max(1, len(answer))


def broken(row, answer):
    return row["nothing"]


def endless(row, answer):
    return float("inf")
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text('LETTER = "e"\n', encoding="utf-8")
    (tmp_path / "rules.py").write_text(RULES, encoding="utf-8")
    return tmp_path / "rules.py"


def test_a_rule_adds_its_number_by_weight_to_the_reward(run: Aligned, reward_model: Path, rules: Path):
    rule = f'rules={{letters={{file="{rules}", function="letters", weight=-7.0}}}}'
    trainer = prepared(run(RlooConfig, *CHANGES, f"reward={reward_model}", "kl_coefficient=0.0", rule))
    batch, judge, rewards = batch_of(trainer), RewardModel(reward_model), []
    for prompt, answer in rows_of(batch):
        text = judge.tokenizer.decode(answer).strip()
        ended = answer[-1] in judge.tokenizer.end_ids
        reward = judge.score([prompt + answer])[0] - 7.0 * text.count("e") / max(1, len(text))
        rewards.append(reward - PENALTY * (not ended))
    groups = np.array(rewards).reshape(2, NUM_ANSWERS)
    others = (groups.sum(axis=1, keepdims=True) - groups) / (NUM_ANSWERS - 1)
    assert_agree(batch["advantages"], (groups - others).ravel(), "model, narrow window", "float32", "torch")


def test_rules_alone_teach(run: Aligned, rules: Path):
    rule = f'rules={{letters={{file="{rules}", function="letters", weight=10.0}}}}'
    changes = ("batch_rows=32", "num_answers=8", "max_answer_tokens=8", "kl_coefficient=0.0", "steps=12")
    config = run(RlooConfig, *changes, "optimizer.learning_rate=3e-2", rule)
    train_rloo(config)
    lines = map(json.loads, (config.output / "log.jsonl").read_text(encoding="utf-8").splitlines())
    means = [entry["rewards/letters/mean"] for entry in lines if "rewards/letters/mean" in entry]
    assert means[0] < 0.2
    assert max(means[9:]) > 0.4


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("broken", r"rules\.one raised KeyError: 'nothing', for the row \{"),
        ("endless", r"rules\.one gave inf, no finite number"),
        ("absent", r"rules\.py has no function absent"),
    ],
)
def test_a_rule_that_cannot_judge_is_told(run: Aligned, rules: Path, function: str, said: str):
    config = run(RlooConfig, "max_answer_tokens=8", f'rules={{one={{file="{rules}", function="{function}"}}}}')
    with pytest.raises(TrainError, match=said):
        train_rloo(config)


@pytest.mark.parametrize("content", ["1 / 0", "import nothing_of_that_name", "def letters("])
def test_a_file_of_rules_that_fails_is_told(run: Aligned, rules: Path, content: str):
    rules.write_text(content, encoding="utf-8")
    config = run(RlooConfig, "max_answer_tokens=8", f'rules={{one={{file="{rules}", function="letters"}}}}')
    with pytest.raises(TrainError, match=r"rule .*rules\.py cannot be run: "):
        train_rloo(config)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ((), "reward is missing, and there are no rules"),
        (('watched={reward="a"}', "reward=b"), r"watched\.reward is given"),
        (('watched={second="a"}', 'rules={second={file="r.py", function="f"}}'), r"rules\.second is given"),
        (('rules={unended={file="r.py", function="f"}}',), r"rules\.unended is given"),
        (('rules={asked={file="r.py"}}',), r"function is missing"),
        (('rules={asked={file="r.py", function="f", wait=1}}',), r"wait"),
    ],
)
def test_what_teaches_must_be_named_once(run: Aligned, changes: tuple[str, ...], said: str):
    with pytest.raises(TrainError, match=said):
        run(RlooConfig, "max_answer_tokens=8", *changes)


def test_fewer_prompts_than_a_step_reads_are_refused(run: Aligned, rules: Path):
    rule = f'rules={{letters={{file="{rules}", function="letters"}}}}'
    few = ("max_answer_tokens=8", "num_answers=2", "batch_rows=8", "sources.rows.max_rows=3", "data.held_out_share=0.0")
    with pytest.raises(TrainError, match=r"3 prompts are left to learn from; .* batch_rows / num_answers \(4\)"):
        train_rloo(run(RlooConfig, *few, rule))


def test_answers_to_a_prompt_that_would_lie_in_two_processes_are_refused(
    run: Aligned, rules: Path, monkeypatch: pytest.MonkeyPatch
):
    config = run(RlooConfig, "max_answer_tokens=8", f'rules={{letters={{file="{rules}", function="letters"}}}}')
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = r"batch_rows is 4; it must be a multiple of num_answers \(4\) times the number of processes \(2\)"
    with pytest.raises(TrainError, match=told):
        train_rloo(config)


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
