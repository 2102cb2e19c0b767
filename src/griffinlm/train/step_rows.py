"""Which rows of a data set the steps of a run read."""

from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from torch.utils.data import Sampler


class StepRows(Sampler[int]):
    """The rows of a pass of a trainer: whole steps, so that every row of a step counts the same on any devices.

    The run reads one order after another of all rows, each following from the seed and its own number alone. A pass of
    the trainer is as many steps as hold all rows; it goes on in the orders where the pass before ended.

    Args:
        current_pass: number of the pass that begins; a run that goes on begins in the middle of one.
    """

    def __init__(self, num_rows: int, step_rows: int, seed: int, current_pass: Callable[[], int]) -> None:
        self._num_rows, self._step_rows, self._seed, self._current_pass = num_rows, step_rows, seed, current_pass
        self._num_steps = -(-num_rows // step_rows)
        self._order = lru_cache(maxsize=2)(self._new_order)

    def __len__(self) -> int:
        return self._num_steps * self._step_rows

    def __iter__(self) -> Iterator[int]:
        return (row for step in self.steps() for row in step)

    def steps(self) -> Iterator[list[int]]:
        """The rows of each step of the pass."""
        first = self._current_pass() * self._num_steps
        for step in range(first, first + self._num_steps):
            places = range(step * self._step_rows, (step + 1) * self._step_rows)
            yield [self._order(place // self._num_rows)[place % self._num_rows] for place in places]

    def _new_order(self, number: int) -> list[int]:
        return torch.randperm(self._num_rows, generator=torch.Generator().manual_seed(self._seed + number)).tolist()
