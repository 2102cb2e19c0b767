"""Steps that find their tokens read already: guesses are read ahead, and stay as far as they come true."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from griffinlm.executor import DraftingExecutor, Engine, ExecutorError, LogitsChoice


@dataclass
class _Ahead:
    """What was read of a slot beyond its state."""

    guesses: np.ndarray
    """[n], the tokens behind the one that was given."""
    logits: np.ndarray
    """[n + 1, vocab], behind the given one and behind each guess."""
    num_taken: int = 1
    """How many of these tokens the slot's conversation has by now."""


class SpeculatingExecutor:
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
        _check_guesses(num_guesses)
        self._executor, self._num_guesses = executor, num_guesses
        self.num_slots = executor.num_slots
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
                self._ahead[slot] = _Ahead(guesses, logits)
                self.num_guessed += len(guesses)
                self.num_readings += 1
        for slot, is_one in zip(slots, is_true, strict=True):
            self._ahead[slot].num_taken += is_one
        self.num_true += sum(is_true)
        return np.stack([self._ahead[slot].logits[self._ahead[slot].num_taken - 1] for slot in slots])

    def prefill(
        self, slots: Sequence[int], tokens: np.ndarray, positions: np.ndarray | None, logits: LogitsChoice
    ) -> np.ndarray | None:
        self._settle(slots)
        return self._executor.prefill(slots, tokens, positions, logits)

    def mark(self, slot: int) -> Any:
        self._settle([slot])
        return self._executor.mark(slot)

    def rollback(self, slot: int, mark: Any) -> None:
        self._settle([slot])
        self._executor.rollback(slot, mark)

    def export_state(self, slot: int) -> dict[str, np.ndarray]:
        self._settle([slot])
        return self._executor.export_state(slot)

    def import_state(self, slot: int, arrays: dict[str, np.ndarray]) -> None:
        self._settle([slot])
        self._executor.import_state(slot, arrays)

    def use_adapter(self, slot: int, name: str | None) -> None:
        self._settle([slot])
        self._executor.use_adapter(slot, name)

    def release(self, slot: int) -> None:
        self._ahead.pop(slot, None)
        self._executor.release(slot)

    def _has_guessed(self, slot: int, token: int) -> bool:
        ahead = self._ahead.get(slot)
        return ahead is not None and token in ahead.guesses[ahead.num_taken - 1 : ahead.num_taken]

    def _settle(self, slots: Sequence[int]) -> None:
        """Brings the slots' states to where their conversations stand."""
        for slot in slots:
            if slot in self._ahead:
                self._executor.keep(slot, self._ahead.pop(slot).num_taken)


class SpeculatingEngine:
    """An engine whose executors read ahead.

    Args:
        engine: what it is without guesses.
        make_executor: gives executors that guess, by slots and capacity.

    Raises:
        ExecutorError: as for `SpeculatingExecutor`.
    """

    def __init__(
        self, engine: Engine, make_executor: Callable[[int, int | None], DraftingExecutor], num_guesses: int
    ) -> None:
        _check_guesses(num_guesses)
        self.config, self.precision, self.window_dtype = engine.config, engine.precision, engine.window_dtype
        self.num_spare_rows = 0  # they wait for no graph to be captured
        self._make_executor, self._num_guesses = make_executor, num_guesses

    def executor(self, num_slots: int, capacity: int | None = None) -> SpeculatingExecutor:
        return SpeculatingExecutor(self._make_executor(num_slots, capacity), self._num_guesses)


def _check_guesses(num_guesses: int) -> None:
    if num_guesses < 1:
        raise ExecutorError(f"num_guesses is {num_guesses}; it must be at least 1")
