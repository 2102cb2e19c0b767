"""Synthetic recall over token ids: for models of any vocabulary that were trained on it."""

from typing import NamedTuple

import numpy as np

from griffinlm.errors import GriffinError

NOISE, MARKER, FIRST_SYMBOL = 0, 1, 2
"""Ids of the noise token, of the marker, and of the first of the symbols, which are all the others."""

NUM_COPIED_TOKENS = 16
"""As in the Griffin paper, section 6.2."""

LEAST_LENGTHS = {"selective_copying": NUM_COPIED_TOKENS + 1, "induction_heads": 3}
TOKEN_TASKS = tuple(LEAST_LENGTHS)
MOST_LENGTH = 1 << 24


class RecallError(GriffinError):
    """A recall task that there is not, or that cannot be made at the length asked for."""


class Example(NamedTuple):
    """A question and its answer in token ids."""

    prompt: list[int]
    answer: list[int]


class TrainingRows(NamedTuple):
    """Questions with their answers behind them, all of one length."""

    tokens: np.ndarray
    """int64 [rows, tokens]: `length` of the prompt, then those of the answer."""
    is_answer: np.ndarray
    """bool [rows, tokens]: where the loss of predicting a token counts."""


def token_example(task: str, vocab_size: int, length: int, generator: np.random.Generator) -> Example:
    """One example with a prompt of `length` tokens.

    `selective_copying`: 16 symbols at random places among noise, then the marker; the answer is these symbols in their
    order. `induction_heads`: random symbols with the marker at a random place, and once more at the end; the answer is
    the symbol that followed it. Both are section 6.2 of the Griffin paper.

    Raises:
        RecallError: no such task, too short a length, or too small a vocabulary.
    """
    _check(task, vocab_size, length)
    if task == "selective_copying":
        copied = generator.integers(FIRST_SYMBOL, vocab_size, NUM_COPIED_TOKENS)
        prompt = np.full(length, NOISE)
        prompt[np.sort(generator.choice(length - 1, NUM_COPIED_TOKENS, replace=False))] = copied
        prompt[-1] = MARKER
        return Example(prompt.tolist(), copied.tolist())
    prompt = generator.integers(FIRST_SYMBOL, vocab_size, length)
    place = generator.integers(length - 2)
    prompt[[place, -1]] = MARKER
    return Example(prompt.tolist(), [int(prompt[place + 1])])


def training_rows(task: str, vocab_size: int, length: int, rows: int, seed: int) -> TrainingRows:
    """Examples of a token task as rows to train on; the same seed gives the same rows.

    Raises:
        RecallError: as `token_example`, or there are no rows.
    """
    if rows < 1:
        raise RecallError(f"rows is {rows}; it must be 1 or above")
    generator = np.random.default_rng(seed)
    examples = [token_example(task, vocab_size, length, generator) for _ in range(rows)]
    tokens = np.array([example.prompt + example.answer for example in examples], np.int64)
    is_answer = np.zeros(tokens.shape, bool)
    is_answer[:, length:] = True
    return TrainingRows(tokens, is_answer)


def _check(task: str, vocab_size: int, length: int) -> None:
    if task not in TOKEN_TASKS:
        raise RecallError(f"there is no recall task {task!r} over token ids; allowed are {', '.join(TOKEN_TASKS)}")
    if not LEAST_LENGTHS[task] <= length <= MOST_LENGTH:
        raise RecallError(f"length is {length}; {task} needs {LEAST_LENGTHS[task]} to {MOST_LENGTH} tokens")
    if vocab_size < FIRST_SYMBOL + 2:
        raise RecallError(f"the vocabulary has {vocab_size} tokens; {task} needs at least {FIRST_SYMBOL + 2}")
