"""The states of an executor's slots: rows of arrays that the graph reads where they lie."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from griffinlm.config import ModelConfig
from griffinlm.edge.memory import require_memory
from griffinlm.executor import ExecutorError, require_arrays
from griffinlm.state import NOTHING_PENDING, block_layout, is_ring

RING_STEP_SLOTS = 64
"""Rings grow, and one row's are read, up to multiples of this: so calls repeat, whatever other slots hold."""


def num_used_slots(num_tokens: int) -> int:
    """How many slots of a ring serve documents of `num_tokens`."""
    return max(1, -(-num_tokens // RING_STEP_SLOTS)) * RING_STEP_SLOTS


class Mark(NamedTuple):
    """A slot's state at one moment."""

    arrays: dict[str, np.ndarray]
    num_tokens: int
    num_skipped: np.ndarray


class SlotStates:
    """One row of every state array for each slot.

    Rings are as long as the longest document read so far needs, and grow by doubling up to their full size: the graph
    reads all of a ring, so short conversations are faster and take less memory. Slot numbers are the caller's; the rows
    behind them move, so that rows that run together lie together.
    """

    def __init__(
        self, config: ModelConfig, num_slots: int, capacity: int | None, window_dtype: str, precision: str
    ) -> None:
        """Raises NotEnoughMemoryError where the states at their full size would not fit."""
        self._layout = block_layout(config, num_slots, capacity, window_dtype, precision)
        require_memory(sum(spec.nbytes for spec in self._layout.values()), f"the state of {num_slots} conversations")
        self.rings = {name: spec.shape[1] for name, spec in self._layout.items() if is_ring(name)}
        """The full number of slots of every ring, by the array's name."""
        self.arrays: dict[str, np.ndarray] = {}
        self.num_tokens = np.zeros(num_slots, np.int64)
        num_skipping = config.num_loops - 1 if config.skips else 0
        self.num_skipped = np.zeros((num_slots, num_skipping), np.int64)
        """Tokens of each row's document that the loops behind the first have not read, in a model that skips."""
        self._loop_of = {name: config.loop_of(int(name.split(".")[1])) if num_skipping else 0 for name in self._layout}
        self._row_of = np.arange(num_slots)
        self.num_held = 0
        """Slots that rings have by now; where it changes, `arrays` holds new ones."""
        for name, spec in self._layout.items():
            if name not in self.rings:
                self.arrays[name] = np.zeros(spec.shape, spec.dtype)
        self.hold(1)

    def hold(self, num_tokens: int) -> None:
        """Makes rings long enough for documents of `num_tokens`."""
        longest = max(self.rings.values(), default=0)
        if min(num_tokens, longest) <= self.num_held:
            return
        self.num_held = min(longest, num_used_slots(max(num_tokens, 2 * self.num_held)))
        for name, num_slots in self.rings.items():
            spec, old = self._layout[name], self.arrays.get(name)
            shape = spec.shape[0], min(num_slots, self.num_held), *spec.shape[2:]
            if old is None or old.shape != shape:
                self.arrays[name] = np.zeros(shape, spec.dtype)
                if old is not None:
                    self.arrays[name][:, : old.shape[1]] = old

    def rows_of(self, slots: Sequence[int]) -> np.ndarray:
        """Where the slots' states are."""
        return self._row_of[list(slots)]

    def arrange(self, slots: Sequence[int], num_rows: int) -> tuple[int, np.ndarray]:
        """First row of the slots, and the place of each from there; moves states only where rows have gaps."""
        assert len(set(slots)) == len(slots) == num_rows, "one row for each of different slots"
        rows = self._row_of[list(slots)]
        first = int(rows.min())
        if rows.max() - first + 1 == len(rows):
            return first, rows - first
        for row, slot in enumerate(slots):
            self._swap_rows(row, int(self._row_of[slot]))
        return 0, np.arange(len(rows))

    def keep(self, new: Mapping[str, np.ndarray], first: int, positions: np.ndarray) -> None:
        """Writes what a call computed for the rows from `first` on.

        Args:
            new: by name, arrays after the call [rows, ...], of rings the new rows [rows, tokens, ...].
            positions: [rows, tokens], -1 for padding, which stands at the end of a row.
        """
        is_real = positions >= 0
        rank = np.arange(positions.shape[1])
        last = is_real.sum(axis=1) - 1
        last_start = np.where(positions == 0, rank, -1).max(axis=1)
        by_loop = self._positions_by_loop(first, positions)
        places: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for name, array in self.arrays.items():
            if name not in self.rings:
                array[first : first + len(positions)] = new[name]
                continue
            num_slots = self.rings[name]
            if num_slots not in places:
                # What a later token overwrites, or makes invisible by starting a document, is left out.
                kept = is_real & (rank > last[:, None] - num_slots) & (rank >= last_start[:, None])
                row, column = np.nonzero(kept)
                places[num_slots] = row, column
            row, column = places[num_slots]
            own = by_loop[self._loop_of[name]]
            array[first + row, own[row, column] % num_slots] = new[name][row, column]
        read = np.flatnonzero(last >= 0)
        self.num_tokens[first + read] = positions[read, last[read]] + 1
        self.num_skipped[first + np.flatnonzero(last_start >= 0)] = 0

    def keep_tokens(self, slot: int, ahead: Mapping[str, np.ndarray], num_tokens: int) -> None:
        """Makes the first tokens that were read ahead of a slot part of its state.

        Args:
            ahead: by name what each token would bring into an array, [T, ...]: h behind it, the convolution's input, or
                the row of a ring.
        """
        row = self._row_of[slot]
        self.hold(int(self.num_tokens[row]) + num_tokens)
        for name, kept in self.arrays.items():
            new, num_past = ahead[name][:num_tokens], kept.shape[1]
            if name in self.rings:
                # What a later token overwrites is left out.
                new, num_slots = new[-self.rings[name] :], self.rings[name]
                first = self._num_read(row, name) + num_tokens - len(new)
                kept[row, np.arange(first, first + len(new)) % num_slots] = new
            elif name.endswith(".hidden"):
                kept[row] = new[-1]
            else:
                kept[row] = np.concatenate([kept[row], new])[-num_past:]
        self.num_tokens[row] += num_tokens

    def _positions_by_loop(self, first: int, positions: np.ndarray) -> list[np.ndarray]:
        """Positions as each loop of a model that skips sees them; as `layout.loop_positions`."""
        if not self.num_skipped.shape[1]:
            return [positions]
        goes_on = ((positions == 0).cumsum(axis=1) == 0) & (positions >= 0)
        skipped = self.num_skipped[first : first + len(positions)]
        return [positions, *(positions - column[:, None] * goes_on for column in skipped.T)]

    def _num_read(self, row: int, name: str) -> int:
        """Tokens of the row's document that the layer of an array has read."""
        loop, num_tokens = self._loop_of[name], int(self.num_tokens[row])
        return num_tokens - int(self.num_skipped[row, loop - 1]) if loop else num_tokens

    def mark(self, slot: int) -> Mark:
        row = self._row_of[slot]
        arrays = {name: array[row].copy() for name, array in self.arrays.items()}
        return Mark(arrays, int(self.num_tokens[row]), self.num_skipped[row].copy())

    def rollback(self, slot: int, mark: Mark) -> None:
        row = self._row_of[slot]
        for name, array in self.arrays.items():
            old = mark.arrays[name]
            # A ring may have grown since; what stands further on is never read.
            array[row, : len(old)] = old
        self.num_tokens[row], self.num_skipped[row] = mark.num_tokens, mark.num_skipped

    def exported(self, slot: int) -> dict[str, np.ndarray]:
        """Copies of the arrays at full size, [1, ...], with zeros where nothing of the present document stands."""
        row = self._row_of[slot]
        out: dict[str, np.ndarray] = {
            "num_tokens": self.num_tokens[row : row + 1].copy(),
            "pending": np.array([NOTHING_PENDING], np.int64),
        }
        if self.num_skipped.shape[1]:
            out["num_skipped"] = self.num_skipped[row : row + 1].copy()
        for name, array in self.arrays.items():
            spec, num_tokens = self._layout[name], self._num_read(row, name)
            out[name] = np.zeros((1, *spec.shape[1:]), spec.dtype)
            if name in self.rings:
                out[name][0, :num_tokens] = array[row, :num_tokens]
            elif name.endswith(".convolution"):
                unread = max(0, array.shape[1] - num_tokens)
                out[name][0, unread:] = array[row, unread:]
            else:
                out[name][0] = array[row]
        return out

    def fill(self, slot: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Puts a state as `exported` gives it into a slot.

        Raises:
            ExecutorError: it lacks arrays, or has other shapes or types.
        """
        skipping = ["num_skipped"] if self.num_skipped.shape[1] else []
        require_arrays(arrays, ["num_tokens", *skipping, *self._layout])
        for name, spec in self._layout.items():
            new = arrays[name]
            if new.shape[1:] != spec.shape[1:] or new.dtype != spec.dtype:
                found, allowed = f"{new.dtype}{list(new.shape[1:])}", f"{spec.dtype}{list(spec.shape[1:])}"
                raise ExecutorError(f"a state's {name} is {found}; this executor's slots have {allowed}")
        row, num_tokens = self._row_of[slot], int(arrays["num_tokens"][0])
        self.hold(num_tokens)
        for name, kept in self.arrays.items():
            kept[row] = arrays[name][0, : kept.shape[1]] if name in self.rings else arrays[name][0]
        self.num_tokens[row] = num_tokens
        if skipping:
            self.num_skipped[row] = arrays["num_skipped"][0]

    def release(self, slot: int) -> None:
        row = self._row_of[slot]
        for array in self.arrays.values():
            array[row] = 0
        self.num_tokens[row], self.num_skipped[row] = 0, 0

    def _swap_rows(self, one: int, other: int) -> None:
        if one == other:
            return
        for array in (*self.arrays.values(), self.num_tokens, self.num_skipped):
            array[[one, other]] = array[[other, one]]
        slot_of = np.argsort(self._row_of)
        self._row_of[slot_of[one]], self._row_of[slot_of[other]] = other, one
