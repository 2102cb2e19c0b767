"""Synthetic recall: how much of what stands far back a model still knows, as curves over length."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from griffinlm.evaluate.continuations import DEFAULT_ROWS, score_continuations
from griffinlm.evaluate.recall_texts import LEAST_ENTRIES, MOST_ENTRIES, MOST_FILLERS, TextExample, needle, phonebook
from griffinlm.evaluate.recall_tokens import TOKEN_TASKS, Example, RecallError, token_example
from griffinlm.evaluate.recall_tokens import training_rows as training_rows
from griffinlm.language_model import LanguageModel
from griffinlm.text import Tokenizer

DEFAULT_NUM_EXAMPLES = 32

TEXT_TASKS = {"phonebook": (phonebook, LEAST_ENTRIES, MOST_ENTRIES), "needle": (needle, 0, MOST_FILLERS)}
"""Function from the number of parts to an example, fewest and most parts."""

RECALL_TASKS = (*TEXT_TASKS, *TOKEN_TASKS)


@dataclass(frozen=True)
class RecallFigure:
    """One point of a curve."""

    task: str
    length: int
    """Tokens of a prompt: exactly, of text tasks at most."""
    accuracy: float
    """Share of answers whose every token is the model's first choice: those that it would write at temperature 0."""
    standard_error: float
    token_accuracy: float
    """Share of the answers' tokens that are the model's first choice after the right ones before them."""
    examples: int


def evaluate_recall(
    model: LanguageModel,
    tasks: Sequence[str],
    lengths: Sequence[int],
    num_examples: int = DEFAULT_NUM_EXAMPLES,
    seed: int = 0,
    batch_rows: int = DEFAULT_ROWS,
) -> list[RecallFigure]:
    """Accuracy of each task at each length.

    Token tasks are drawn from the whole vocabulary of the model and begin without BOS; text tasks begin with it.

    Raises:
        RecallError: a task is unknown, or cannot be made at a length.
        TokenizerError: a text task, and the model has no tokenizer.
    """
    for task in tasks:
        require_recall_task(task)
    if num_examples < 1 or seed < 0:
        raise RecallError(f"examples is {num_examples} and seed {seed}; they must be at least 1 and 0")
    figures = []
    for task in tasks:
        for length in lengths:
            examples = [recall_example(model, task, length, seed, index) for index in range(num_examples)]
            scores = score_continuations(model, examples, batch_rows)
            accuracy = float(np.mean([score.is_best.all() for score in scores]))
            token_accuracy = float(np.mean(np.concatenate([score.is_best for score in scores])))
            error = math.sqrt(accuracy * (1 - accuracy) / num_examples)
            figures.append(RecallFigure(task, length, accuracy, error, token_accuracy, num_examples))
    return figures


def recall_example(model: LanguageModel, task: str, length: int, seed: int, index: int) -> Example:
    """Example number `index`, the same for the same tokenizer or vocabulary, task, length and seed.

    Raises:
        GriffinError: as `evaluate_recall`.
    """
    require_recall_task(task)
    key = [seed, RECALL_TASKS.index(task), length, index]
    if task in TOKEN_TASKS:
        return token_example(task, model.config.vocab_size, length, np.random.default_rng(key))
    make, fewest, most = TEXT_TASKS[task]

    def example(num_parts: int) -> Example:
        return _in_tokens(make(num_parts, np.random.default_rng(key)), model.tokenizer)

    least = len(example(fewest).prompt)
    if least > length:
        raise RecallError(f"length is {length}; {task} needs at least {least} tokens of this tokenizer")
    too_many = fewest + 1
    while too_many <= most and len(example(too_many).prompt) <= length:
        fewest, too_many = too_many, 2 * too_many
    if too_many > most and len(example(most).prompt) <= length:
        raise RecallError(f"length is {length}; {task} has names or sentences for less than that")
    too_many = min(too_many, most)
    while too_many - fewest > 1:
        middle = (fewest + too_many) // 2
        fewest, too_many = (middle, too_many) if len(example(middle).prompt) <= length else (fewest, middle)
    return example(fewest)


def require_recall_task(task: str) -> None:
    """Raises RecallError where there is no task of that name."""
    if task not in RECALL_TASKS:
        raise RecallError(f"there is no recall task {task!r}; allowed are {', '.join(RECALL_TASKS)}")


def _in_tokens(example: TextExample, tokenizer: Tokenizer) -> Example:
    """The ids of the whole text, cut where those of the prompt alone end."""
    alone, whole = tokenizer.encode(example.prompt), tokenizer.encode(example.prompt + example.answer)
    num_common = next((i for i, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), len(alone))
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return Example([*start, *whole[:num_common]], whole[num_common:])
