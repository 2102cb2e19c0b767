"""Early exits under the ordinary scheduler: every slot's token at a depth of its own, told when it leaves."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from griffinlm.executor import WithdrawingExecutor
from griffinlm.generation.request import Choose, Step
from griffinlm.generation.settling import SettlingExecutor


class ExitingExecutor(SettlingExecutor):
    """An executor whose tokens leave the loops where its rule lets them.

    `advance` is a step of depth-wise batching. A token on its way is taken back before anything else looks at its slot,
    so that a state has read either all or nothing of it; the next `advance` begins with it anew.

    Args:
        executor: used by this one alone.
    """

    def __init__(self, executor: WithdrawingExecutor) -> None:
        super().__init__(executor)
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

    def _settle(self, slots: Sequence[int]) -> None:
        for slot in slots:
            if self._forget(slot) is not None:
                self._executor.withdraw(slot)

    def _forget(self, slot: int) -> int | None:
        return self._depth.pop(slot, None)


def exiting_step(choose: Choose) -> Step:
    """A `Step` of an `ExitingExecutor`: one loop of every slot, and a choice for the tokens that have left."""

    def step(
        executor: ExitingExecutor, choosers: Sequence[Any], slots: Sequence[int], tokens: Sequence[int]
    ) -> list[int | Exception | None]:
        has_left, logits = executor.advance(slots, tokens)
        done = [chooser for chooser, has in zip(choosers, has_left, strict=True) if has]
        chosen = iter(choose(done, logits) if done else ())
        return [next(chosen) if has else None for has in has_left]

    return step
