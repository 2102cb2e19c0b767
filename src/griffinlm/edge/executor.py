"""Slots on the onnx engine: the arrays of their states, and the calls of the graph that bring them forward."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from griffinlm.edge.call import Call
from griffinlm.edge.low_rank import NO_ADAPTER, AdaptedRows, adapted_rows
from griffinlm.edge.scan import MAX_CHUNK_TOKENS
from griffinlm.edge.slots import Mark, SlotStates, num_used_slots
from griffinlm.executor import LogitsChoice, check_adapter, check_prefill

if TYPE_CHECKING:
    from griffinlm.edge.engine import OnnxEngine

MAX_CALL_TOKENS = 256
"""Tokens of all rows together that one call reads: enough for the matrix products, and little memory."""


class OnnxExecutor:
    """Each slot is a row of the state's arrays. Rows that run together lie together: the graph reads them in place."""

    def __init__(self, engine: "OnnxEngine", num_slots: int, capacity: int | None) -> None:
        self.engine, self.num_slots, self.capacity = engine, num_slots, capacity
        self._states = SlotStates(engine.config, num_slots, capacity, engine.window_dtype, engine.precision)
        self._adapter_of = np.full(num_slots, NO_ADAPTER)
        """By slot, place of its adapter among those of the graph."""
        self._step: tuple[tuple[Any, ...], Call] | None = None

    def prefill(
        self, slots: Sequence[int], tokens: np.ndarray, positions: np.ndarray | None, logits: LogitsChoice
    ) -> np.ndarray | None:
        first, place = self._states.arrange(slots, len(tokens))
        num_before = self._states.num_tokens[first + place]
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
        found = self._read(first, tokens, places, wanted, self._adapters(slots)[by_row])
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
        first, place = self._states.arrange(slots, len(tokens))
        ids = np.empty((len(place), 1), np.int64)
        ids[place, 0] = tokens
        num_before = self._states.num_tokens[first : first + len(place), None]
        check_prefill(self.engine.config, ids, None, num_before[:, 0], self.capacity)
        adapters = np.empty(len(place), np.int64)
        adapters[place] = self._adapters(slots)
        return self._read(first, ids, num_before, np.ones(ids.shape, bool), adapters)[place]

    def mark(self, slot: int) -> Mark:
        return self._states.mark(slot)

    def rollback(self, slot: int, mark: Mark) -> None:
        self._states.rollback(slot, mark)

    def export_state(self, slot: int) -> dict[str, np.ndarray]:
        return self._states.exported(slot)

    def import_state(self, slot: int, arrays: dict[str, np.ndarray]) -> None:
        self._states.fill(slot, arrays)

    def use_adapter(self, slot: int, name: str | None) -> None:
        check_adapter(self.engine.adapter_places, name)
        self._adapter_of[slot] = NO_ADAPTER if name is None else self.engine.adapter_places[name]

    def release(self, slot: int) -> None:
        self._adapter_of[slot] = NO_ADAPTER
        self._states.release(slot)

    def _adapters(self, slots: Sequence[int]) -> np.ndarray:
        return self._adapter_of[list(slots)]

    def _read(
        self, first: int, tokens: np.ndarray, positions: np.ndarray, wanted: np.ndarray, adapters: np.ndarray
    ) -> np.ndarray:
        """Brings the rows from `first` on forward; gives the wanted tokens' logits, good until the next call.

        Args:
            tokens, positions: [rows, tokens], padding at the end. wanted: [rows, tokens], whose logits to compute.
            adapters: [rows], place of each row's adapter in the graph.
        """
        num_rows, num_tokens = tokens.shape
        if num_tokens == 1:
            return self._read_chunk(first, tokens, positions, wanted, adapters)
        out = np.empty((int(wanted.sum()), self.engine.config.vocab_size), np.float32)
        chunk = max(1, min(MAX_CHUNK_TOKENS, MAX_CALL_TOKENS // num_rows))
        for start in range(0, num_tokens, chunk):
            part = np.s_[:, start : start + chunk]
            if (positions[part] < 0).all():
                break
            found = self._read_chunk(first, tokens[part], positions[part], wanted[part], adapters)
            is_here = np.zeros_like(wanted)
            is_here[part] = wanted[part]
            out[is_here[wanted]] = found
        return out

    def _read_chunk(
        self, first: int, tokens: np.ndarray, positions: np.ndarray, wanted: np.ndarray, adapters: np.ndarray
    ) -> np.ndarray:
        """One call of the graph; the logits stay good until the next."""
        rows = slice(first, first + len(tokens))
        num_before = self._states.num_tokens[rows]
        self._states.hold(int(max(num_before.max(), positions.max() + 1)))
        adapted = adapted_rows(adapters, positions >= 0) if self.engine.has_low_rank else None
        call = self._call(rows, tokens.shape[1], int(wanted.sum()), adapted)
        call.embedded[:] = self.engine.embedding.rows(np.where(positions >= 0, tokens, 0))
        call.positions[:] = positions
        call.num_before[:] = num_before
        call.num_skipped[:] = self._states.num_skipped[rows]
        call.logit_index[:] = np.argwhere(wanted)
        call.run()
        self._states.keep(call.new, first, positions)
        return call.logits

    def _call(self, rows: slice, num_tokens: int, num_logits: int, adapted: AdaptedRows | None) -> Call:
        """A call of that size; the last one for single tokens is kept and used again."""
        num_used = self._num_used_slots(rows)
        key = (rows.start, rows.stop, num_used, self._states.num_held, None if adapted is None else adapted.shapes)
        is_step = num_tokens == 1 and num_logits == rows.stop - rows.start
        if is_step and self._step is not None and self._step[0] == key:
            call = self._step[1]
            for kept, new in zip(call.adapted or (), adapted or (), strict=True):
                kept[:] = new
            return call
        engine, states = self.engine, self._states
        call = Call(
            *(engine.session, engine.config, states.arrays, states.rings.keys()),
            *(rows, num_tokens, num_logits, num_used, engine.taps, adapted, states.num_skipped.shape[1]),
        )
        if is_step:
            self._step = key, call
        return call

    def _num_used_slots(self, rows: slice) -> int | None:
        """How far rings are read; None for all that is held. Several rows share no memory that could be cut short."""
        if rows.stop - rows.start > 1:
            return None
        return num_used_slots(int(self._states.num_tokens[rows.start]))
