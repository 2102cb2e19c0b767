"""A conversation that keeps its state answers as one read from the beginning."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import griffinlm
from griffinlm import GriffinError
from griffinlm.conversation import Conversation, ConversationError
from griffinlm.state import seal, state_layout

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


def test_a_branch_answers_as_the_same_conversation_without_the_other_branches(model):
    conversation = Conversation(model, **GREEDY)
    for text in ("the hawk", "and the hill", "grow"):
        say(conversation, text)
    conversation.go_to(1)
    answer = say(conversation, "the griffin")
    straight = Conversation(model, **GREEDY)
    say(straight, "the hawk")
    assert answer == say(straight, "the griffin")
    assert conversation.messages == straight.messages
    assert [turn.number for turn in conversation.current.path] == [0, 1, 4]
    assert [child.number for child in conversation.turns[1].children] == [2, 4]


def test_going_back_reads_only_what_is_said_next(griffin):
    conversation = Conversation(griffin, max_tokens=1, temperature=0)
    for text in ("the hawk", "and the hill", "grow"):
        say(conversation, text)
    before = len(griffin.tokenizer.encode_chat(conversation.turns[1].messages, False))
    conversation.rewind(2)
    griffin.num_read = 0
    say(conversation, "the griffin")
    whole = len(griffin.tokenizer.encode_chat(conversation.messages[:-1]))
    num_of_answer_and_seam = 3
    assert griffin.num_read <= whole - before + num_of_answer_and_seam


@given(
    st.lists(st.tuples(st.integers(0, 5), words.map("".join)), min_size=1, max_size=6), st.sampled_from([0, 1 << 30])
)
def test_every_walk_through_the_tree_answers_as_from_scratch(model, walk, kept_bytes):
    conversation = Conversation(model, kept_bytes=kept_bytes, **GREEDY)
    for number, text in walk:
        conversation.go_to(number % len(conversation.turns))
        say(conversation, text)
        assert conversation.latest.token_ids == from_scratch(model, conversation, **GREEDY).token_ids


def test_states_beyond_the_budget_are_given_up_and_the_newest_stays(griffin):
    size = griffin.new_state().nbytes
    conversation = Conversation(griffin, kept_bytes=3 * size, **GREEDY)
    for _ in range(5):
        say(conversation, "the hawk")
    assert conversation.num_kept == 2
    assert conversation.kept_bytes <= 3 * size
    assert conversation.state is not None
    conversation.go_to(1)
    assert conversation.state is None
    say(conversation, "grow")
    assert conversation.latest.token_ids == from_scratch(griffin, conversation, **GREEDY).token_ids


def test_turns_that_are_not_there_are_refused(griffin):
    conversation = Conversation(griffin, **GREEDY)
    say(conversation, "the hawk")
    with pytest.raises(ConversationError, match="no turn 2; turns are 0 to 1"):
        conversation.go_to(2)
    for num_turns in (0, 2):
        with pytest.raises(ConversationError, match=f"{num_turns} turns cannot be taken back; there are 1 up to here"):
            conversation.rewind(num_turns)
    assert conversation.current.number == 1


def test_a_loaded_conversation_goes_on_as_the_saved_one(model, tmp_path):
    conversation = Conversation(model, **GREEDY)
    for text in ("the hawk", "and the <end_of_turn> hill"):
        say(conversation, text)
    conversation.go_to(1)
    say(conversation, "grün")
    conversation.save(tmp_path / "file")
    loaded = Conversation.load(tmp_path / "file", model, **GREEDY)
    assert [turn.messages for turn in loaded.turns] == [turn.messages for turn in conversation.turns]
    assert loaded.current.number == conversation.current.number
    for number in (3, 2, 0):
        answers = []
        for one in (conversation, loaded):
            one.go_to(number)
            answers.append(say(one, "grow"))
        assert answers[0] == answers[1]


def test_a_loaded_conversation_has_the_state_of_the_present_turn(griffin, tmp_path):
    conversation = Conversation(griffin, **GREEDY)
    say(conversation, "the hawk")
    conversation.save(tmp_path / "file")
    loaded = Conversation.load(tmp_path / "file", griffin, **GREEDY)
    for name, array in conversation.state.arrays().items():
        np.testing.assert_array_equal(array, loaded.state.arrays()[name])


def test_conversations_of_others_and_damaged_ones_are_refused(griffin, tiny_gemma_directory, tmp_path):
    conversation = Conversation(griffin, **GREEDY)
    say(conversation, "the hawk")
    path = tmp_path / "file"
    conversation.save(path)
    with pytest.raises(GriffinError, match="another model"):
        Conversation.load(path, griffinlm.load(tiny_gemma_directory))
    conversation.state.save(tmp_path / "state")
    with pytest.raises(ConversationError, match="no conversation"):
        Conversation.load(tmp_path / "state", griffin)
    with pytest.raises(GriffinError, match="there is no conversation"):
        Conversation.load(tmp_path / "nowhere", griffin)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(GriffinError, match="damaged"):
        Conversation.load(path, griffin)


@pytest.mark.parametrize(
    "details",
    [
        None,
        [],
        {"turns": []},
        {"turns": [], "current": 1},
        {"turns": [], "current": True},
        {"turns": [], "current": "0"},
        {"turns": 5, "current": 0},
        {"turns": [{"parent": 1, "said": ["a", "b"]}], "current": 0},
        {"turns": [{"parent": -1, "said": ["a", "b"]}], "current": 0},
        {"turns": [{"parent": 0, "said": ["a"]}], "current": 0},
        {"turns": [{"parent": 0, "said": "ab"}], "current": 0},
        {"turns": [{"parent": 0, "said": ["a", 5]}], "current": 0},
        {"turns": [{"parent": 0}], "current": 0},
    ],
)
def test_well_made_files_that_hold_no_tree_are_refused(griffin, tmp_path, details):
    path = tmp_path / "file"
    path.write_bytes(seal({"x": np.zeros(1, np.float32)}, griffin.identity, details))
    with pytest.raises(ConversationError, match="no conversation"):
        Conversation.load(path, griffin)


def test_a_state_of_two_rows_is_refused(griffin, tmp_path):
    layout = state_layout(griffin.config, 2, None, griffin.window_dtype, griffin.precision)
    arrays = {name: np.zeros(spec.shape, spec.dtype) for name, spec in layout.items()}
    arrays |= {"pending": np.full(2, -1), "conversation.token_ids": np.zeros((0, 0), np.int32)}
    path = tmp_path / "conversation"
    path.write_bytes(seal(arrays, griffin.identity, {"turns": [], "current": 0}))
    with pytest.raises(GriffinError, match="other tokens than those it lists"):
        Conversation.load(path, griffin)


def test_unknown_and_wrong_options_are_refused_at_once(griffin, tiny_model_without_tokenizer):
    with pytest.raises(GriffinError, match="unknown option 'warmth'"):
        Conversation(griffin, warmth=1)
    with pytest.raises(GriffinError, match="top_p is 2"):
        Conversation(griffin, top_p=2)
    with pytest.raises(GriffinError, match="no tokenizer"):
        Conversation(griffinlm.load(tiny_model_without_tokenizer)).say("hello")
