"""A model that knows the answer has all points of recall, one that guesses those of chance; a seed decides the task."""

import re
import zlib

import numpy as np
import pytest
from fake_model import fake_model
from hypothesis import given
from hypothesis import strategies as st

from griffinlm.evaluate.recall import RECALL_TASKS, TEXT_TASKS, evaluate_recall, recall_example, training_rows
from griffinlm.evaluate.recall_texts import LAST_NAMES, needle, phonebook
from griffinlm.evaluate.recall_tokens import FIRST_SYMBOL, MARKER, NOISE, TOKEN_TASKS, RecallError
from griffinlm.text import Tokenizer

VOCAB_SIZE = 16
TINY_VOCAB_SIZE = 288
LENGTHS = [200, 320]
NUM_EXAMPLES = 24


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_directory) -> Tokenizer:
    return Tokenizer.from_directory(tiny_tokenizer_directory)


def solve_copying(read: list[int]) -> int:
    marker = read.index(MARKER)
    copied = [token for token in read[:marker] if token != NOISE]
    return copied[len(read) - marker - 1]


def solve_induction(read: list[int]) -> int:
    assert read[-1] == MARKER
    return read[read.index(MARKER) + 1]


def answer_of(prompt: str) -> str:
    """The answer to a text prompt, found by reading it."""
    if prompt.startswith("This is a phone book."):
        name = prompt.rsplit("\n", 1)[1].removesuffix(":")
        return re.search(rf"^{name}: (.*)$", prompt, re.MULTILINE)[1]
    return re.match(r"The secret number of \w+ is (\d+)\.", prompt)[1]


def oracle(task: str, tokenizer: Tokenizer):
    """A model that puts all on the right next token."""

    def solve_text(read: list[int]) -> int:
        text = tokenizer.decode(read)
        end = text.rindex(":" if task == "phonebook" else " is") + (1 if task == "phonebook" else 3)
        whole = [tokenizer.bos_id, *tokenizer.encode(f"{text[:end]} {answer_of(text[:end])}")]
        return whole[len(read)]

    solve = {"selective_copying": solve_copying, "induction_heads": solve_induction}.get(task, solve_text)
    vocab_size = TINY_VOCAB_SIZE if task in TEXT_TASKS else VOCAB_SIZE

    def next_logits(read):
        return np.where(np.arange(vocab_size) == solve(read), 9.0, 0.0).astype(np.float32)

    return fake_model(vocab_size, next_logits, tokenizer)


def guesser(task: str, tokenizer: Tokenizer):
    """A model whose logits are drawn anew for every sequence of tokens."""
    vocab_size = TINY_VOCAB_SIZE if task in TEXT_TASKS else VOCAB_SIZE

    def next_logits(read):
        seed = zlib.crc32(np.array(read).tobytes())
        return np.random.default_rng(seed).standard_normal(vocab_size).astype(np.float32)

    return fake_model(vocab_size, next_logits, tokenizer)


@pytest.mark.parametrize("task", RECALL_TASKS)
def test_an_oracle_has_all_points(task, tokenizer):
    found = evaluate_recall(oracle(task, tokenizer), [task], LENGTHS, 8)
    assert [(figure.task, figure.length, figure.examples) for figure in found] == [(task, n, 8) for n in LENGTHS]
    assert all((figure.accuracy, figure.standard_error, figure.token_accuracy) == (1.0, 0.0, 1.0) for figure in found)


@pytest.mark.parametrize("task", RECALL_TASKS)
def test_a_guesser_has_the_points_of_chance(task, tokenizer):
    model = guesser(task, tokenizer)
    (figure,) = evaluate_recall(model, [task], [200], NUM_EXAMPLES)
    num_tokens = [len(recall_example(model, task, 200, 0, index).answer) for index in range(NUM_EXAMPLES)]
    chance = 1 / model.config.vocab_size
    deviation = np.sqrt(chance * (1 - chance) / sum(num_tokens))
    assert abs(figure.token_accuracy - chance) < 4 * deviation
    all_right = np.mean([chance**n for n in num_tokens])
    assert abs(figure.accuracy - all_right) < 4 * np.sqrt(all_right / NUM_EXAMPLES) + 1e-9


def test_accuracy_counts_whole_answers_and_token_accuracy_single_tokens(tokenizer):
    right = oracle("selective_copying", tokenizer).engine.next_logits

    def wrong_in_the_last_token(read):
        return -right(read) if len(read) == 200 + 15 else right(read)

    model = fake_model(VOCAB_SIZE, wrong_in_the_last_token)
    (figure,) = evaluate_recall(model, ["selective_copying"], [200], 4)
    assert (figure.accuracy, figure.token_accuracy) == (0.0, 15 / 16)


@pytest.mark.parametrize("task", RECALL_TASKS)
def test_examples_are_those_of_their_seed_and_number_alone(task, tokenizer):
    model = guesser(task, tokenizer)
    first = recall_example(model, task, 220, 1, 0)
    assert recall_example(model, task, 220, 1, 0) == first
    assert recall_example(model, task, 220, 1, 1) != first
    assert recall_example(model, task, 220, 2, 0) != first
    assert evaluate_recall(model, [task], [220], 6) == evaluate_recall(model, [task], [220], 6, batch_rows=1)


@pytest.mark.parametrize("task", TEXT_TASKS)
def test_text_prompts_fill_their_length(task, tokenizer):
    model = guesser(task, tokenizer)
    longest_part = 50
    for length in (170, 333, 1500):
        example = recall_example(model, task, length, 0, 0)
        assert length - longest_part < len(example.prompt) <= length
        assert example.prompt[0] == tokenizer.bos_id
        text = tokenizer.decode(example.prompt + example.answer)
        assert text.endswith(f" {answer_of(tokenizer.decode(example.prompt))}")


@given(st.integers(3, 400), st.integers(0, 1000))
def test_a_phone_book_has_each_name_once_and_asks_for_none_of_the_examples(num_entries, seed):
    prompt, answer = phonebook(num_entries, np.random.default_rng(seed))
    book, questions = prompt.split("\n\n")
    entries = dict(line.split(": ") for line in book.splitlines()[1:])
    examples = dict(line.split(": ") for line in questions.splitlines()[1:-1])
    asked = questions.splitlines()[-1].removesuffix(":")
    assert len(entries) == num_entries
    assert len(examples) == 2
    assert examples.items() <= entries.items()
    assert asked not in examples
    assert f" {entries[asked]}" == answer


@given(st.integers(0, 300), st.integers(0, 1000))
def test_the_needle_stands_first_and_once(num_fillers, seed):
    prompt, answer = needle(num_fillers, np.random.default_rng(seed))
    assert prompt.startswith("The secret number of ")
    assert prompt.count(answer.strip()) == 1
    assert prompt.count(".") == 1 + num_fillers
    assert prompt.index(answer) < 40


@given(st.sampled_from(TOKEN_TASKS), st.integers(4, 40), st.integers(17, 90), st.integers(1, 5), st.integers(0, 99))
def test_training_rows_are_questions_with_their_answers(task, vocab_size, length, num_rows, seed):
    tokens, is_answer = training_rows(task, vocab_size, length, num_rows, seed)
    num_answer_tokens = {"selective_copying": 16, "induction_heads": 1}[task]
    assert tokens.shape == is_answer.shape == (num_rows, length + num_answer_tokens)
    assert tokens.dtype == np.int64
    assert tokens.min() >= 0
    assert tokens.max() < vocab_size
    assert is_answer.sum(axis=1).tolist() == [num_answer_tokens] * num_rows
    solve = {"selective_copying": solve_copying, "induction_heads": solve_induction}[task]
    for row, answer in zip(tokens.tolist(), is_answer, strict=True):
        for place in np.flatnonzero(answer):
            assert row[place] == solve(row[:place])
            assert row[place] >= FIRST_SYMBOL
    assert np.array_equal(training_rows(task, vocab_size, length, num_rows, seed).tokens, tokens)


def test_other_seeds_give_other_training_rows():
    first, second = (training_rows("selective_copying", VOCAB_SIZE, 64, 4, seed).tokens for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_names_of_a_book_do_not_repeat():
    assert len(set(LAST_NAMES)) == len(LAST_NAMES)


@pytest.mark.parametrize(
    ("task", "length", "message"),
    [
        ("memory", 100, "no recall task 'memory'; allowed are phonebook, needle, selective_copying, induction_heads"),
        ("selective_copying", 16, "length is 16; selective_copying needs 17 to"),
        ("induction_heads", 2, "length is 2"),
        ("phonebook", 20, "length is 20; phonebook needs at least"),
        ("phonebook", 10**6, "phonebook has names or sentences for less"),
    ],
)
def test_what_cannot_be_made_is_refused(task, length, message, tokenizer):
    with pytest.raises(RecallError, match=message):
        evaluate_recall(guesser(task, tokenizer), [task], [length], 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("needle", 16, 64, 1, 0), "no recall task 'needle' over token ids"),
        (("induction_heads", 3, 64, 1, 0), "the vocabulary has 3 tokens"),
        (("induction_heads", 16, 64, 0, 0), "rows is 0"),
    ],
)
def test_training_rows_that_cannot_be_made_are_refused(arguments, message):
    with pytest.raises(RecallError, match=message):
        training_rows(*arguments)
