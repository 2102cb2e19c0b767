"""Slots on the onnx engine: the arrays of their states, and the calls of the graph that bring them forward."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from griffinlm.edge.call import Call
from griffinlm.edge.memory import require_memory
from griffinlm.edge.scan import MAX_CHUNK_TOKENS
from griffinlm.executor import ExecutorError, LogitsChoice, check_prefill
from griffinlm.state import NOTHING_PENDING, block_layout

if TYPE_CHECKING:
    from griffinlm.edge.engine import OnnxEngine

MAX_CALL_TOKENS = 512
"""Tokens of all rows together that one call reads: enough for the matrix products, and little memory."""

RING_STEP_SLOTS = 64
"""A ring that is not full is read up to a multiple of this, so that calls can be repeated as they are."""


class Mark(NamedTuple):
    """A slot's state at one moment."""

    arrays: dict[str, np.ndarray]
    num_tokens: int


class OnnxExecutor:
    """Each slot is a row of the state's arrays. Rows that run together lie together: the graph reads them in place."""

    def __init__(self, engine: "OnnxEngine", num_slots: int, capacity: int | None) -> None:
        layout = block_layout(engine.config, num_slots, capacity, engine.window_dtype, engine.precision)
        require_memory(sum(spec.nbytes for spec in layout.values()), f"the state of {num_slots} conversations")
        self.engine, self.num_slots, self.capacity = engine, num_slots, capacity
        self._arrays = {name: np.zeros(spec.shape, spec.dtype) for name, spec in layout.items()}
        self._rings = {name for name in layout if not name.endswith((".hidden", ".convolution"))}
        self._num_tokens = np.zeros(num_slots, np.int64)
        self._row_of = np.arange(num_slots)
        self._step: tuple[tuple[int, int, int | None], Call] | None = None

    def prefill(
        self, slots: Sequence[int], tokens: np.ndarray, positions: np.ndarray | None, logits: LogitsChoice
    ) -> np.ndarray | None:
        first, place = self._arrange(slots, len(tokens))
        num_before = self._num_tokens[first + place]
        check_prefill(self.engine.config, tokens, positions, num_before, self.capacity)
        places = num_before[:, None] + np.arange(tokens.shape[1]) if positions is None else positions
        # Padding moves to the end of its row, where causality hides it.
        order = np.argsort(places < 0, axis=1, kind="stable")
        by_row = np.empty_like(place)
        by_row[place] = np.arange(len(place))
        tokens = np.take_along_axis(tokens, order, axis=1)[by_row]
        places = np.take_along_axis(places, order, axis=1)[by_row]
        is_real = places >= 0
        wanted = np.zeros_like(is_real)
        if logits == "all":
            wanted = is_real
        elif logits == "last":
            last = is_real.sum(axis=1) - 1
            wanted[np.flatnonzero(last >= 0), last[last >= 0]] = True
        found = self._read(first, tokens, places, wanted)
        vocab_size = self.engine.config.vocab_size
        if logits == "none":
            return None
        if logits == "last":
            out = np.zeros((len(place), 1, vocab_size), np.float32)
            out[wanted.any(axis=1), 0] = found
            return out[place]
        out = np.zeros((*tokens.shape, vocab_size), np.float32)
        row, column = np.nonzero(wanted)
        out[row, order[by_row][row, column]] = found
        return out[place]

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        first, place = self._arrange(slots, len(tokens))
        ids = np.empty((len(place), 1), np.int64)
        ids[place, 0] = tokens
        num_before = self._num_tokens[first : first + len(place), None]
        check_prefill(self.engine.config, ids, None, num_before[:, 0], self.capacity)
        return self._read(first, ids, num_before, np.ones(ids.shape, bool))[place]

    def mark(self, slot: int) -> Mark:
        row = self._row_of[slot]
        return Mark({name: array[row].copy() for name, array in self._arrays.items()}, int(self._num_tokens[row]))

    def rollback(self, slot: int, mark: Mark) -> None:
        row = self._row_of[slot]
        for name, array in self._arrays.items():
            array[row] = mark.arrays[name]
        self._num_tokens[row] = mark.num_tokens

    def export_state(self, slot: int) -> dict[str, np.ndarray]:
        row = self._row_of[slot]
        num_tokens = int(self._num_tokens[row])
        arrays = {name: array[row : row + 1].copy() for name, array in self._arrays.items()}
        # What an earlier document left is never read again, but it would travel with the state.
        for name, array in arrays.items():
            if name in self._rings:
                array[:, num_tokens:] = 0
            elif name.endswith(".convolution"):
                array[:, : max(0, array.shape[1] - num_tokens)] = 0
        counters = {"num_tokens": np.array([num_tokens], np.int64), "pending": np.array([NOTHING_PENDING], np.int64)}
        return {**counters, **arrays}

    def import_state(self, slot: int, arrays: dict[str, np.ndarray]) -> None:
        for name, kept in self._arrays.items():
            new = arrays[name]
            if new.shape[1:] != kept.shape[1:] or new.dtype != kept.dtype:
                found, allowed = f"{new.dtype}{list(new.shape[1:])}", f"{kept.dtype}{list(kept.shape[1:])}"
                raise ExecutorError(f"a state's {name} is {found}; this executor's slots have {allowed}")
        row = self._row_of[slot]
        for name, kept in self._arrays.items():
            kept[row] = arrays[name][0]
        self._num_tokens[row] = arrays["num_tokens"][0]

    def release(self, slot: int) -> None:
        row = self._row_of[slot]
        for array in self._arrays.values():
            array[row] = 0
        self._num_tokens[row] = 0

    def _arrange(self, slots: Sequence[int], num_rows: int) -> tuple[int, np.ndarray]:
        """First row of the slots, and the place of each from there; moves states only where rows have gaps."""
        assert len(set(slots)) == len(slots) == num_rows, "one row for each of different slots"
        rows = self._row_of[list(slots)]
        first = int(rows.min())
        if rows.max() - first + 1 == len(rows):
            return first, rows - first
        for row, slot in enumerate(slots):
            self._swap_rows(row, int(self._row_of[slot]))
        return 0, np.arange(len(rows))

    def _swap_rows(self, one: int, other: int) -> None:
        if one == other:
            return
        for array in (*self._arrays.values(), self._num_tokens):
            array[[one, other]] = array[[other, one]]
        slot_of = np.argsort(self._row_of)
        self._row_of[slot_of[one]], self._row_of[slot_of[other]] = other, one

    def _read(self, first: int, tokens: np.ndarray, positions: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Brings the rows from `first` on forward; gives the wanted tokens' logits, row by row.

        Args:
            tokens, positions: [rows, tokens], padding at the end. wanted: [rows, tokens], whose logits to compute.
        """
        num_rows, num_tokens = tokens.shape
        if num_tokens == 1:
            return self._read_chunk(first, tokens, positions, wanted).copy()
        out = np.empty((int(wanted.sum()), self.engine.config.vocab_size), np.float32)
        chunk = max(1, min(MAX_CHUNK_TOKENS, MAX_CALL_TOKENS // num_rows))
        for start in range(0, num_tokens, chunk):
            part = np.s_[:, start : start + chunk]
            if (positions[part] < 0).all():
                break
            found = self._read_chunk(first, tokens[part], positions[part], wanted[part])
            is_here = np.zeros_like(wanted)
            is_here[part] = wanted[part]
            out[is_here[wanted]] = found
        return out

    def _read_chunk(self, first: int, tokens: np.ndarray, positions: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """One call of the graph; the logits stay good until the next."""
        rows = slice(first, first + len(tokens))
        is_real = positions >= 0
        call = self._call(rows, tokens.shape[1], int(wanted.sum()))
        call.embedded[:] = self.engine.embedding.rows(np.where(is_real, tokens, 0))
        call.positions[:] = positions
        call.num_before[:] = self._num_tokens[rows]
        call.logit_index[:] = np.argwhere(wanted)
        call.run()
        self._keep(call, rows, positions, is_real)
        return call.logits

    def _keep(self, call: Call, rows: slice, positions: np.ndarray, is_real: np.ndarray) -> None:
        """Writes what the call computed into the state."""
        rank = np.arange(positions.shape[1])
        last = is_real.sum(axis=1) - 1
        last_start = np.where(positions == 0, rank, -1).max(axis=1)
        row, column = np.zeros(0, np.int64), np.zeros(0, np.int64)
        for name, array in self._arrays.items():
            if name not in self._rings:
                array[rows] = call.new[name]
                continue
            num_slots = array.shape[1]
            # What a later token overwrites, or makes invisible by starting a document, is left out: no slot twice.
            kept = is_real & (rank > last[:, None] - num_slots) & (rank >= last_start[:, None])
            row, column = np.nonzero(kept)
            array[rows.start + row, positions[row, column] % num_slots] = call.new[name][row, column]
        read = np.flatnonzero(last >= 0)
        self._num_tokens[rows.start + read] = positions[read, last[read]] + 1

    def _call(self, rows: slice, num_tokens: int, num_logits: int) -> Call:
        """A call of that size; the last one for single tokens is kept and used again."""
        num_used = self._num_used_slots(rows)
        key = (rows.start, rows.stop, num_used)
        is_step = num_tokens == 1 and num_logits == rows.stop - rows.start
        if is_step and self._step is not None and self._step[0] == key:
            return self._step[1]
        engine = self.engine
        arrays, rings = self._arrays, self._rings
        call = Call(engine.session, engine.config, arrays, rings, rows, num_tokens, num_logits, num_used, engine.taps)
        if is_step:
            self._step = key, call
        return call

    def _num_used_slots(self, rows: slice) -> int | None:
        """How far rings are read; None for all of it. Several rows share no memory that could be cut short."""
        if rows.stop - rows.start > 1:
            return None
        num_read = int(self._num_tokens[rows.start])
        return max(1, -(-num_read // RING_STEP_SLOTS)) * RING_STEP_SLOTS
