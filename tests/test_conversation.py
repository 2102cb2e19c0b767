"""A conversation that keeps its state answers as one read from the beginning."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import griffinlm
from griffinlm import GriffinError
from griffinlm.conversation import Conversation

GREEDY = {"max_tokens": 8, "temperature": 0.0}
words = st.lists(
    st.sampled_from(["the hawk", "griffin", "<end_of_turn>", " ", "é", "\n", "hill."]), min_size=1, max_size=4
)
turns = st.lists(words.map("".join), min_size=1, max_size=4)


class CountingModel(griffinlm.LanguageModel):
    """Counts the tokens that are read, those of the prompts of answers too."""

    def __init__(self, model: griffinlm.LanguageModel) -> None:
        self.__dict__.update(model.__dict__)
        self.num_read = 0

    def read(self, text, state=None):
        self.num_read += len(text)
        return super().read(text, state)

    def stream(self, prompt, *, state=None, **options):
        self.num_read += len(prompt)
        return super().stream(prompt, state=state, **options)


@pytest.fixture(scope="module", params=["tiny_model_directory", "tiny_gemma_directory"])
def model(request):
    return griffinlm.load(request.getfixturevalue(request.param))


@pytest.fixture
def griffin(tiny_model_directory):
    return CountingModel(griffinlm.load(tiny_model_directory))


def from_scratch(model, conversation: Conversation, **options) -> griffinlm.Generation:
    """The answer to all messages but the last, read from the beginning."""
    return model.generate(model.tokenizer.encode_chat(conversation.messages[:-1]), **options)


def say(conversation: Conversation, text: str) -> str:
    return "".join(conversation.say(text))


@given(turns)
def test_every_turn_answers_as_the_whole_conversation_from_scratch(model, texts):
    conversation = Conversation(model, **GREEDY)
    for text in texts:
        answer = say(conversation, text)
        expected = from_scratch(model, conversation, **GREEDY)
        assert conversation.latest.token_ids == expected.token_ids
        assert answer == expected.text == conversation.messages[-1]["content"]


@given(turns, st.integers(0, 1000))
def test_with_a_seed_every_turn_answers_as_from_scratch(model, texts, seed):
    options = {"max_tokens": 8, "seed": seed, "top_k": 20}
    conversation = Conversation(model, **options)
    for text in texts:
        say(conversation, text)
        assert conversation.latest.token_ids == from_scratch(model, conversation, **options).token_ids


@given(turns)
def test_two_conversations_do_not_hear_each_other(model, texts):
    alone = Conversation(model, **GREEDY)
    expected = [say(alone, text) for text in texts]
    one, other = Conversation(model, **GREEDY), Conversation(model, **GREEDY)
    for text, answer in zip(texts, expected, strict=True):
        say(other, f"{text} hill")
        assert say(one, text) == answer


def test_a_turn_reads_only_what_is_new(griffin):
    """Where the answer's ids are not those the tokenizer would give, the answer is read once more."""
    seen = set()
    for seed in range(20):
        conversation = Conversation(griffin, max_tokens=2, seed=seed)
        say(conversation, "the hawk and the griffin are older than the hill")
        first = griffin.tokenizer.encode_chat(conversation.messages[:-1])
        answer = conversation.latest.token_ids
        griffin.num_read = 0
        say(conversation, "grow")
        second = griffin.tokenizer.encode_chat(conversation.messages[:-1])
        is_kept = second[: len(first) + 1] == first + answer[:1]
        assert griffin.num_read == len(second) - (len(first) + 1 if is_kept else len(first) - 1)
        seen.add(is_kept)
    assert seen == {True, False}


def test_an_answer_closed_early_is_kept_as_far_as_it_came(griffin):
    conversation = Conversation(griffin, max_tokens=40, temperature=0)
    pieces = conversation.say("the hawk")
    beginning = next(pieces) + next(pieces)
    pieces.close()
    assert conversation.messages[-1] == {"role": "assistant", "content": beginning}
    assert conversation.latest is None
    say(conversation, "and the hill")
    expected = from_scratch(griffin, conversation, max_tokens=40, temperature=0)
    assert conversation.latest.token_ids == expected.token_ids


def test_a_refused_turn_leaves_the_conversation_as_it_was(griffin):
    conversation = Conversation(griffin, **GREEDY)
    say(conversation, "the hawk")
    before = list(conversation.messages)
    with pytest.raises(GriffinError):
        conversation.say(5)
    assert conversation.messages == before


def test_editing_history_reads_anew(griffin):
    conversation = Conversation(griffin, **GREEDY)
    say(conversation, "the hawk")
    conversation.messages[0]["content"] = "the hill"
    say(conversation, "grow")
    np.testing.assert_array_equal(
        conversation.latest.token_ids, from_scratch(griffin, conversation, **GREEDY).token_ids
    )


def test_unknown_and_wrong_options_are_refused_at_once(griffin, tiny_model_without_tokenizer):
    with pytest.raises(GriffinError, match="unknown option 'warmth'"):
        Conversation(griffin, warmth=1)
    with pytest.raises(GriffinError, match="top_p is 2"):
        Conversation(griffin, top_p=2)
    with pytest.raises(GriffinError, match="no tokenizer"):
        Conversation(griffinlm.load(tiny_model_without_tokenizer)).say("hello")
