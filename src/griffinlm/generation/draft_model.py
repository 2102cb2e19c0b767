"""The first layers of a model, as a model of their own, guess what the whole one checks: on any engine."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from griffinlm.executor import Executor, ExecutorError, LogitsChoice


class DraftModelExecutor:
    """A `griffinlm.executor.DraftingExecutor` of two executors with as many slots.

    Where not all that was read ahead is kept, the slot goes back to where it was and reads what is kept again.

    Args:
        drafter: of the first layers, whose state is a part of the model's.
    """

    def __init__(self, executor: Executor, drafter: Executor) -> None:
        self._executor, self._drafter = executor, drafter
        self.num_slots = executor.num_slots
        self._ahead: dict[int, tuple[list[int], Any, Any]] = {}
        """By slot, the tokens read ahead, and the marks of both before them."""

    def read_ahead(
        self, slots: Sequence[int], tokens: Sequence[int], num_guesses: int
    ) -> tuple[np.ndarray, np.ndarray]:
        marks = [(self._executor.mark(slot), self._drafter.mark(slot)) for slot in slots]
        try:
            ids, logits = self._read(slots, tokens, num_guesses)
        except ExecutorError:
            # Behind the end of the capacity nothing can be guessed; a token at fault is refused again.
            self._roll_back(slots, marks)
            ids, logits = self._read(slots, tokens, 0)
        for slot, row, mark in zip(slots, ids, marks, strict=True):
            self._ahead[slot] = row.tolist(), *mark
        return ids[:, 1:], logits

    def keep(self, slot: int, num_tokens: int) -> None:
        tokens, mark, drafter_mark = self._ahead.pop(slot)
        kept = np.asarray([tokens[:num_tokens]], np.int64)
        if num_tokens < len(tokens):
            self._executor.rollback(slot, mark)
            self._executor.prefill([slot], kept, None, "none")
        # The drafter has not read its last guess.
        self._drafter.rollback(slot, drafter_mark)
        self._drafter.prefill([slot], kept, None, "none")

    def prefill(
        self, slots: Sequence[int], tokens: np.ndarray, positions: np.ndarray | None, logits: LogitsChoice
    ) -> np.ndarray | None:
        found = self._executor.prefill(slots, tokens, positions, logits)
        self._drafter.prefill(slots, tokens, positions, "none")
        return found

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        self._drafter.prefill(slots, np.asarray(tokens, np.int64)[:, None], None, "none")
        return self._executor.step(slots, tokens)

    def mark(self, slot: int) -> Any:
        return self._executor.mark(slot), self._drafter.mark(slot)

    def rollback(self, slot: int, mark: Any) -> None:
        self._roll_back([slot], [mark])

    def export_state(self, slot: int) -> dict[str, np.ndarray]:
        return self._executor.export_state(slot)

    def import_state(self, slot: int, arrays: dict[str, np.ndarray]) -> None:
        self._executor.import_state(slot, arrays)
        self._drafter.import_state(slot, arrays)

    def use_adapter(self, slot: int, name: str | None) -> None:
        self._executor.use_adapter(slot, name)

    def release(self, slot: int) -> None:
        self._ahead.pop(slot, None)
        self._executor.release(slot)
        self._drafter.release(slot)

    def _read(self, slots: Sequence[int], tokens: Sequence[int], num_guesses: int) -> tuple[np.ndarray, np.ndarray]:
        """The given tokens with their guesses [rows, n + 1], and the logits behind them."""
        ids = np.asarray(tokens, np.int64)[:, None]
        for _ in range(num_guesses):
            guesses = self._drafter.step(slots, ids[:, -1].tolist()).argmax(axis=1)
            ids = np.concatenate([ids, guesses[:, None]], axis=1)
        logits = self._executor.prefill(slots, ids, None, "all")
        assert logits is not None
        return ids, logits

    def _roll_back(self, slots: Sequence[int], marks: Sequence[tuple[Any, Any]]) -> None:
        for slot, (mark, drafter_mark) in zip(slots, marks, strict=True):
            self._executor.rollback(slot, mark)
            self._drafter.rollback(slot, drafter_mark)
