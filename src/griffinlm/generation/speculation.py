"""Steps that find their tokens read already: guesses are read ahead, and stay as far as they come true."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from griffinlm.executor import DraftingExecutor, ExecutorError
from griffinlm.generation.settling import SettlingExecutor


@dataclass
class _Ahead:
    """What was read of a slot beyond its state."""

    guesses: np.ndarray
    """[n], the tokens behind the one that was given."""
    logits: np.ndarray
    """[n + 1, vocab], behind the given one and behind each guess."""
    num_taken: int = 1
    """How many of these tokens the slot's conversation has by now."""


class SpeculatingExecutor(SettlingExecutor):
    """An executor that gives what another gives, several steps for one reading where guesses come true.

    A step whose token is none that was guessed reads it, and greedy guesses of the tokens behind it, in one go. The
    logits are always those of the whole model, so whoever chooses by them, greedily, by drawing, within a grammar,
    writes what would have been written without guesses; a wrong guess costs time alone (self-speculative decoding,
    LayerSkip, arXiv 2404.16710, section 4.4, with the check left to the chooser).

    Args:
        executor: used by this one alone.
        num_guesses: tokens read ahead at a time.

    Raises:
        ExecutorError: `num_guesses` is below 1.
    """

    def __init__(self, executor: DraftingExecutor, num_guesses: int) -> None:
        if num_guesses < 1:
            raise ExecutorError(f"num_guesses is {num_guesses}; it must be at least 1")
        super().__init__(executor)
        self._num_guesses = num_guesses
        self._ahead: dict[int, _Ahead] = {}
        self.num_guessed = self.num_true = self.num_readings = 0
        """Tokens guessed and those that came true, and how often some were read, a slot counted by itself."""

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        is_true = [self._has_guessed(slot, token) for slot, token in zip(slots, tokens, strict=True)]
        wrong = [(slot, token) for slot, token, is_one in zip(slots, tokens, is_true, strict=True) if not is_one]
        if wrong:
            unread = [slot for slot, _ in wrong]
            self._settle(unread)
            found = self._executor.read_ahead(unread, [token for _, token in wrong], self._num_guesses)
            for slot, guesses, logits in zip(unread, *found, strict=True):
                # Copies, or one slot would keep what was found for all of the call.
                self._ahead[slot] = _Ahead(guesses.copy(), logits.copy())
                self.num_guessed += len(guesses)
                self.num_readings += 1
        for slot, is_one in zip(slots, is_true, strict=True):
            self._ahead[slot].num_taken += is_one
        self.num_true += sum(is_true)
        return np.stack([self._ahead[slot].logits[self._ahead[slot].num_taken - 1] for slot in slots])

    def _has_guessed(self, slot: int, token: int) -> bool:
        ahead = self._ahead.get(slot)
        return ahead is not None and token in ahead.guesses[ahead.num_taken - 1 : ahead.num_taken]

    def _settle(self, slots: Sequence[int]) -> None:
        for slot in slots:
            if slot in self._ahead:
                self._executor.keep(slot, self._ahead.pop(slot).num_taken)

    def _forget(self, slot: int) -> object:
        return self._ahead.pop(slot, None)
