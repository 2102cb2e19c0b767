"""Rollouts: the trainer's probabilities, the trainer's weights, and a prompt that is read once for all its answers."""

from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra train")

import torch
from tolerances import assert_agree

from griffinlm.hf import GriffinForCausalLM
from griffinlm.language_model import LanguageModel
from griffinlm.text import Tokenizer
from griffinlm.train.alignment.rollouts import Rollouts, shared_engine

PROMPTS = [[2, 50, 61, 72, 83], [2, 90], [2, 65, 50, 90, 91, 92, 60]]
TEMPERATURE = 0.7


@pytest.fixture
def model(tiny_model_directory: Path) -> GriffinForCausalLM:
    return GriffinForCausalLM.from_pretrained(tiny_model_directory, dtype=torch.float32)


def rollouts_of(model: GriffinForCausalLM, tokenizer: Tokenizer) -> Rollouts:
    return Rollouts(LanguageModel(shared_engine(model), tokenizer, lambda: ""), 9, TEMPERATURE)


@pytest.fixture
def rollouts(model: GriffinForCausalLM, tiny_tokenizer_directory: Path) -> Rollouts:
    return rollouts_of(model, Tokenizer.from_directory(tiny_tokenizer_directory))


def test_log_probabilities_of_rollouts_are_those_of_the_trainers_forward(model: GriffinForCausalLM, rollouts: Rollouts):
    for prompt, ends in zip(PROMPTS, rollouts.ends(PROMPTS, 2, "seed", has_log_probabilities=True), strict=True):
        for end in ends:
            with torch.no_grad():
                logits = model(torch.tensor([prompt + end.token_ids])).logits[0, len(prompt) - 1 : -1]
            expected = torch.log_softmax(logits, dim=-1)[range(len(end.token_ids)), end.token_ids]
            assert end.log_probabilities is not None
            found = [chosen.log_probability for chosen in end.log_probabilities]
            assert_agree(found, expected, "model", "float32", "torch")


def test_what_an_optimizer_writes_the_next_rollouts_read(model: GriffinForCausalLM, rollouts: Rollouts):
    before = rollouts.answers(PROMPTS, 2, "seed")
    assert rollouts.answers(PROMPTS, 2, "seed") == before
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.tensor([PROMPTS[0]]), labels=torch.tensor([PROMPTS[0]])).loss.backward()
    optimizer.step()
    after = rollouts.answers(PROMPTS, 2, "seed")
    assert after != before
    fresh = rollouts_of(model, rollouts._model.tokenizer)
    assert fresh.answers(PROMPTS, 2, "seed") == after


def test_engine_and_trained_model_have_the_same_memory_and_the_model_stays_trainable(model: GriffinForCausalLM):
    shared = dict(shared_engine(model).model.named_parameters())
    for name, parameter in model.base_model.named_parameters():
        assert shared[name].data_ptr() == parameter.data_ptr(), name
        assert parameter.requires_grad
        assert not shared[name].requires_grad


def test_answers_to_a_prompt_differ_and_follow_from_the_seed(rollouts: Rollouts):
    found = rollouts.answers(PROMPTS[:1], 4, "a")
    assert len({tuple(answer) for answer in found}) > 1
    assert rollouts.answers(PROMPTS[:1], 4, "b") != found
    assert rollouts.answers(PROMPTS, 4, "a")[:4] == found, "other prompts must not change an answer"


def test_a_prompt_is_read_once_for_all_its_answers(rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch):
    read, engine = [], rollouts._model.engine
    make = engine.executor

    def executor(*arguments):
        made = make(*arguments)
        prefill = made.prefill

        def counted(slots, tokens, positions, logits):
            read.append(tokens.shape)
            return prefill(slots, tokens, positions, logits)

        made.prefill = counted
        return made

    monkeypatch.setattr(engine, "executor", executor)
    answers = rollouts.answers(PROMPTS[2:], 4, "seed")
    num_written = sum(len(answer) - 1 for answer in answers)
    assert sum(rows * tokens for rows, tokens in read) == len(PROMPTS[2]) + num_written


def test_a_model_with_global_attention_gets_the_room_that_it_needs(
    tiny_gemma_directory: Path, tiny_tokenizer_directory: Path
):
    model = GriffinForCausalLM.from_pretrained(tiny_gemma_directory, dtype=torch.float32)
    rollouts = rollouts_of(model, Tokenizer.from_directory(tiny_tokenizer_directory))
    assert [1 <= len(answer) <= 9 for answer in rollouts.answers(PROMPTS, 2, "seed")] == [True] * 6
