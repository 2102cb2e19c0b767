"""Log-probabilities of continuations. A context that several share is read once, and its state forked for each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from griffinlm.errors import GriffinError
from griffinlm.executor import check_tokens
from griffinlm.generation.candidates import log_normaliser
from griffinlm.language_model import FORWARD_CHUNK_TOKENS, SCORED_LOGITS_AT_MOST, LanguageModel
from griffinlm.progress import progress
from griffinlm.state import State

DEFAULT_ROWS = 8

Tokens = Sequence[int]


class ContinuationError(GriffinError):
    """A continuation that stands after nothing."""


@dataclass(frozen=True)
class ContinuationScore:
    """What a model thinks of each token of a continuation."""

    log_probabilities: np.ndarray
    """log p(token | context and the tokens before it), float64 [tokens]."""
    is_best: np.ndarray
    """Whether the model would choose that token at temperature 0, bool [tokens]."""


def score_continuations(
    model: LanguageModel, pairs: Sequence[tuple[Tokens, Tokens]], batch_rows: int = DEFAULT_ROWS
) -> list[ContinuationScore]:
    """Scores continuations after their contexts; the answers are those of each pair alone.

    The token after a context is predicted by the context's last logits, so a continuation of one token costs nothing
    beyond its context.

    Args:
        pairs: context, at least one token, and continuation; nothing is put before them.
        batch_rows: contexts, then continuations, that are read side by side.

    Raises:
        GriffinError: a context is empty, or a token is not in the vocabulary.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for index, (context, continuation) in enumerate(pairs):
        if not len(context):
            raise ContinuationError(f"context {index} is empty; it must have at least one token, such as BOS")
        check_tokens(model.config, np.asarray([*context, *continuation]))
        places.setdefault(tuple(context), []).append(index)
    # Contexts of one length need no padding, and the longest shows first whether memory suffices.
    contexts = sorted(places, key=len, reverse=True)
    scores: dict[int, ContinuationScore] = {}
    for start in progress(range(0, len(contexts), batch_rows), "scoring"):
        batch = contexts[start : start + batch_rows]
        num_after = max(len(pairs[index][1]) for context in batch for index in places[context])
        logits, state = _read_contexts(model, batch, num_after)
        forks = [(row, index) for row, context in enumerate(batch) for index in places[context]]
        for first in range(0, len(forks), batch_rows):
            part = forks[first : first + batch_rows]
            rows = [row for row, _ in part]
            continuations = [pairs[index][1] for _, index in part]
            found = _score_forks(model, logits, state, rows, continuations)
            scores.update(zip((index for _, index in part), found, strict=True))
    return [scores[index] for index in range(len(pairs))]


def _read_contexts(
    model: LanguageModel, contexts: Sequence[tuple[int, ...]], num_after: int
) -> tuple[np.ndarray, State]:
    """The logits after each context [rows, vocab], and the state there.

    Args:
        num_after: most tokens to come, which a model with global attention needs room for.
    """
    unread = [_unread(model, context) for context in contexts]
    width = max(map(len, unread))
    state = model.new_state(len(contexts), width + num_after if model.config.needs_capacity else None)
    tokens = np.zeros((len(contexts), width), np.int64)
    positions = np.full(tokens.shape, -1)
    for row, ids in enumerate(unread):
        # Padding stands in front, so that every context ends in the last chunk.
        tokens[row, width - len(ids) :] = ids
        positions[row, width - len(ids) :] = state.num_tokens[row] + np.arange(len(ids))
    logits = None
    for start in range(0, width, FORWARD_CHUNK_TOKENS):
        part = np.s_[:, start : start + FORWARD_CHUNK_TOKENS]
        is_last = start + FORWARD_CHUNK_TOKENS >= width
        logits, state = model.forward(tokens[part], state, positions[part], "last" if is_last else "none")
    assert logits is not None
    return logits[:, 0], state


def _unread(model: LanguageModel, context: tuple[int, ...]) -> tuple[int, ...]:
    """A context without what a tuned state has read."""
    initial = tuple(model.initial_ids)
    unread = context[len(initial) :] if context[: len(initial)] == initial else context
    if not unread:
        raise ContinuationError("a context is BOS alone, which a tuned state has read; it must have one token more")
    return unread


def _score_forks(
    model: LanguageModel, logits: np.ndarray, state: State, rows: Sequence[int], continuations: Sequence[Tokens]
) -> list[ContinuationScore]:
    """Scores of continuations, each from one row of the state.

    Args:
        logits: [rows of the state, vocab], those that predict the first token of each.
        rows: of the state, one for each continuation.
    """
    scores = [ContinuationScore(np.zeros(len(tokens)), np.zeros(len(tokens), bool)) for tokens in continuations]

    def take(fork: int, start: int, predicted: np.ndarray) -> None:
        """Logits [tokens, vocab] that predict the tokens of a continuation from `start` on."""
        targets = np.asarray(continuations[fork][start : start + len(predicted)], np.int64)
        part = slice(start, start + len(targets))
        chosen = np.take_along_axis(predicted, targets[:, None], axis=-1)[:, 0]
        scores[fork].log_probabilities[part] = chosen - log_normaliser(predicted)
        scores[fork].is_best[part] = predicted.argmax(axis=-1) == targets

    for fork, tokens in enumerate(continuations):
        if len(tokens):
            take(fork, 0, logits[rows[fork]][None])
    longer = [fork for fork, tokens in enumerate(continuations) if len(tokens) > 1]
    if not longer:
        return scores
    width = max(len(continuations[fork]) for fork in longer) - 1
    ids = np.zeros((len(longer), width), np.int64)
    positions = np.full(ids.shape, -1)
    for place, fork in enumerate(longer):
        num_read = len(continuations[fork]) - 1
        ids[place, :num_read] = continuations[fork][:-1]
        positions[place, :num_read] = state.num_tokens[rows[fork]] + np.arange(num_read)
    forked = State.stack([state.row(rows[fork]) for fork in longer])
    size = max(1, SCORED_LOGITS_AT_MOST // (len(longer) * model.config.vocab_size))
    for start in range(0, width, size):
        part = np.s_[:, start : start + size]
        predicted, forked = model.forward(ids[part], forked, positions[part], "all")
        assert predicted is not None
        for place, fork in enumerate(longer):
            num_real = int((positions[place, start : start + size] >= 0).sum())
            if num_real:
                take(fork, 1 + start, predicted[place, :num_real])
    return scores
