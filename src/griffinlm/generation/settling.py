"""Executors around others, whose slots stand elsewhere than their conversations between two steps."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from griffinlm.executor import Engine, Executor, Extra, LogitsChoice


class SettlingExecutor:
    """Everything but steps: what looks at a slot, or changes it, finds it settled, where its conversation stands.

    Args:
        executor: used by this one alone.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor: Any = executor
        self.num_slots = executor.num_slots

    def prefill(
        self, slots: Sequence[int], tokens: np.ndarray, positions: np.ndarray | None, logits: LogitsChoice
    ) -> np.ndarray | None:
        self._settle(slots)
        return self._executor.prefill(slots, tokens, positions, logits)

    @abstractmethod
    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        """As of `Executor`."""

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
        self._forget(slot)
        self._executor.release(slot)

    @abstractmethod
    def _settle(self, slots: Sequence[int]) -> None:
        """Brings the slots to where their conversations stand."""

    @abstractmethod
    def _forget(self, slot: int) -> object:
        """Drops what is known of a slot, which is about to be emptied."""


class SettlingEngine:
    """An engine whose executors are made around those of another.

    Args:
        engine: what it is otherwise.
        make_executor: gives the executors, by slots and capacity.
        extra: what they keep beside the states of their slots.
    """

    def __init__(
        self, engine: Engine, make_executor: Callable[[int, int | None], SettlingExecutor], extra: Extra
    ) -> None:
        self.config, self.precision, self.window_dtype = engine.config, engine.precision, engine.window_dtype
        self._make_executor, self._extra = make_executor, extra

    def extra(self, capacity: int | None = None) -> Extra:
        return self._extra

    def executor(self, num_slots: int, capacity: int | None = None) -> SettlingExecutor:
        return self._make_executor(num_slots, capacity)
