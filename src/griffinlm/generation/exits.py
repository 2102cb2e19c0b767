"""Early exits under the ordinary scheduler: every slot's token at a depth of its own, told when it leaves."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from griffinlm.executor import Engine, LogitsChoice, WithdrawingExecutor
from griffinlm.generation.request import step_all


class ExitingExecutor:
    """An executor whose tokens leave the loops where its rule lets them.

    `advance` is a step of depth-wise batching. A token on its way is taken back before anything else looks at its slot,
    so that a state has read either all or nothing of it; the next `advance` begins with it anew.

    Args:
        executor: used by this one alone.
    """

    def __init__(self, executor: WithdrawingExecutor) -> None:
        self._executor, self.num_slots = executor, executor.num_slots
        self._depth: dict[int, int] = {}
        """Loops that the token on its way has been through, by slot."""

    def advance(self, slots: Sequence[int], tokens: Sequence[int]) -> tuple[list[bool], np.ndarray | None]:
        """Runs the next loop of every slot; the tokens given are for slots that have none on their way.

        Returns:
            which tokens have left, and the float32 logits behind these [n, vocab]; None where none has.
        """
        entering = [(slot, token) for slot, token in zip(slots, tokens, strict=True) if slot not in self._depth]
        if entering:
            self._executor.enter([slot for slot, _ in entering], [token for _, token in entering])
            self._depth |= {slot: 0 for slot, _ in entering}
        may_leave, has_left = self._executor.run_loop(slots), []
        for slot, may in zip(slots, may_leave, strict=True):
            self._depth[slot] += 1
            has_left.append(may or self._depth[slot] == self._executor.num_loops)
        done = [slot for slot, has in zip(slots, has_left, strict=True) if has]
        for slot in done:
            del self._depth[slot]
        return has_left, self._executor.leave(done) if done else None

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        found: dict[int, np.ndarray] = {}
        left = dict(zip(slots, tokens, strict=True))
        while left:
            going = list(left)
            has_left, logits = self.advance(going, list(left.values()))
            done = [slot for slot, has in zip(going, has_left, strict=True) if has]
            found |= dict(zip(done, logits if logits is not None else (), strict=True))
            left = {slot: token for slot, token in left.items() if slot not in found}
        return np.stack([found[slot] for slot in slots])

    def prefill(
        self, slots: Sequence[int], tokens: np.ndarray, positions: np.ndarray | None, logits: LogitsChoice
    ) -> np.ndarray | None:
        for slot in slots:
            self._withdraw(slot)
        return self._executor.prefill(slots, tokens, positions, logits)

    def mark(self, slot: int) -> Any:
        self._withdraw(slot)
        return self._executor.mark(slot)

    def rollback(self, slot: int, mark: Any) -> None:
        self._withdraw(slot)
        self._executor.rollback(slot, mark)

    def export_state(self, slot: int) -> dict[str, np.ndarray]:
        self._withdraw(slot)
        return self._executor.export_state(slot)

    def import_state(self, slot: int, arrays: dict[str, np.ndarray]) -> None:
        self._withdraw(slot)
        self._executor.import_state(slot, arrays)

    def use_adapter(self, slot: int, name: str | None) -> None:
        self._withdraw(slot)
        self._executor.use_adapter(slot, name)

    def release(self, slot: int) -> None:
        self._depth.pop(slot, None)
        self._executor.release(slot)

    def _withdraw(self, slot: int) -> None:
        if self._depth.pop(slot, None) is not None:
            self._executor.withdraw(slot)


class ExitingEngine:
    """An engine whose executors let tokens leave early.

    Args:
        engine: what it is without exits.
        make_executor: gives executors with exits, by slots and capacity.
    """

    def __init__(self, engine: Engine, make_executor: Callable[[int, int | None], WithdrawingExecutor]) -> None:
        self.config, self.precision, self.window_dtype = engine.config, engine.precision, engine.window_dtype
        self.num_spare_rows = 0  # they wait for no graph to be captured
        self._engine, self._make_executor = engine, make_executor

    def executor(self, num_slots: int, capacity: int | None = None) -> ExitingExecutor:
        return ExitingExecutor(self._make_executor(num_slots, capacity))


def advance(executor: Any, slots: Sequence[int], tokens: Sequence[int]) -> tuple[Sequence[bool], Any]:
    """An `Advance` for every executor: one loop where tokens leave early, else a step."""
    if isinstance(executor, ExitingExecutor):
        return executor.advance(slots, tokens)
    return step_all(executor, slots, tokens)
