"""Several answers to one prompt: each is the one that its own seed gives alone, and the prompt is read once."""

import pytest

import griffinlm
from griffinlm import GriffinError

PROMPT = "the hawk and the griffin"


@pytest.fixture(scope="module", params=["onnx", "torch"])
def model(request, tiny_model_directory):
    return griffinlm.load(tiny_model_directory, engine=request.param, weights="float32", threads=1)


def test_several_answers_equal_single_ones_with_the_following_seeds(model):
    answers = model.generate(PROMPT, num_answers=4, seed=10, max_tokens=12, log_probabilities=1)
    assert len({tuple(answer.token_ids) for answer in answers}) > 1
    for seed, answer in enumerate(answers, start=10):
        alone = model.generate(PROMPT, seed=seed, max_tokens=12, log_probabilities=1)
        assert (answer.token_ids, answer.text) == (alone.token_ids, alone.text)
        assert len(answer.log_probabilities) == len(answer.token_ids)


def test_every_answer_has_a_state_that_goes_on_as_its_own(model):
    for seed, answer in enumerate(model.generate(PROMPT, num_answers=3, seed=0, max_tokens=5, min_tokens=5)):
        rest = model.generate([], state=answer.state, seed=seed, max_tokens=5, min_tokens=5)
        whole = model.generate(PROMPT, seed=seed, max_tokens=10, min_tokens=10)
        assert answer.token_ids + rest.token_ids == whole.token_ids


def test_answers_from_a_state_equal_single_ones_and_leave_it(model):
    state = model.read(PROMPT)
    answers = model.generate(" flies", state=state, num_answers=2, seed=3, max_tokens=6)
    for seed, answer in enumerate(answers, start=3):
        assert answer.token_ids == model.generate(" flies", state=state, seed=seed, max_tokens=6).token_ids


def test_several_prompts_have_a_list_each(model):
    found = model.generate(["a", PROMPT], num_answers=2, seed=5, max_tokens=6)
    for prompt, answers in zip(["a", PROMPT], found, strict=True):
        assert [answer.token_ids for answer in answers] == [
            model.generate(prompt, seed=seed, max_tokens=6).token_ids for seed in (5, 6)
        ]


def test_one_answer_asked_for_is_a_list_of_one(model):
    (answer,) = model.generate(PROMPT, num_answers=1, seed=1, max_tokens=4)
    assert answer.token_ids == model.generate(PROMPT, seed=1, max_tokens=4).token_ids


def test_the_prompt_is_read_once(model, monkeypatch):
    num_read = []
    make = type(model.engine).executor

    def executor(*arguments):
        made = make(*arguments)
        read = made.prefill

        def prefill(slots, tokens, positions, logits):
            if tokens.shape[1] > 1:
                num_read.append(tokens.size)
            return read(slots, tokens, positions, logits)

        made.prefill = prefill
        return made

    monkeypatch.setattr(type(model.engine), "executor", executor)
    model.generate([5] * 30, num_answers=4, seed=0, max_tokens=3)
    assert num_read == [30]


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "3", True])
def test_a_number_of_answers_that_cannot_be_is_refused(model, wrong):
    with pytest.raises(GriffinError, match=r"num_answers is .*; it must be a whole number, 1 or above"):
        model.generate(PROMPT, num_answers=wrong)


def test_a_seed_that_cannot_be_counted_on_is_refused(model):
    with pytest.raises(GriffinError, match=f"seed is {2**63}"):
        model.generate(PROMPT, num_answers=2, seed=2**63 - 1)


def test_streams_are_of_one_answer(model):
    with pytest.raises(GriffinError, match="unknown option 'num_answers'"):
        model.stream(PROMPT, num_answers=2)
