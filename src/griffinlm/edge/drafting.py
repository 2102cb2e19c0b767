"""Slots of the onnx engine that read ahead: guessing, reading and checking are one call of a graph of its own."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from griffinlm.config import ModelConfig
from griffinlm.edge.ahead import AHEAD, MAX_GUESSES
from griffinlm.edge.call import RUN_OPTIONS
from griffinlm.edge.executor import OnnxExecutor
from griffinlm.edge.slots import Mark
from griffinlm.executor import check_prefill
from griffinlm.state import ARRAY_TYPES, bytes_written_by_a_token

if TYPE_CHECKING:
    from griffinlm.edge.engine import OnnxEngine

LEAST_PROBABILITY = 0.3
"""That a guess must have by the first layers. They are surer together with the others than alone, and a guess costs a
third of the step that it saves where it comes true."""


def bytes_ahead(config: ModelConfig, window_dtype: str) -> int:
    """Bytes kept of a token that was read ahead: what it would bring into the state, at most, and its logits."""
    return (
        bytes_written_by_a_token(config, window_dtype, "float32") + ARRAY_TYPES["float32"].itemsize * config.vocab_size
    )


class OnnxDraftingExecutor(OnnxExecutor):
    """The onnx form of `griffinlm.executor.DraftingExecutor`.

    The state stays as it was before what was read ahead. Keeping n of these tokens is picking: h after token n, the
    last inputs of the convolution up to it, the first n rows of the rings.

    Slots with an adapter guess nothing.

    Args:
        session: of the graph that `ahead.build_ahead_graph` builds from the engine's model.
    """

    def __init__(self, engine: "OnnxEngine", session: Any, num_slots: int, capacity: int | None) -> None:
        super().__init__(engine, num_slots, capacity)
        self._session = session
        self._names = [name + AHEAD for name in self._states.arrays]
        self._ahead: dict[int, dict[str, np.ndarray] | None] = {}
        """By slot, what each token would bring into a state array, [T, ...]; None where the state has it already."""

    def read_ahead(
        self, slots: Sequence[int], tokens: Sequence[int], num_guesses: int
    ) -> tuple[np.ndarray, np.ndarray]:
        assert not self._ahead.keys() & set(slots)
        assert num_guesses <= MAX_GUESSES
        if any(adapter >= 0 for adapter in self._adapters(slots)):
            logits = self.step(slots, tokens)
            self._ahead |= dict.fromkeys(slots, None)
            return np.zeros((len(logits), 0), np.int64), logits[:, None].copy()
        first, place = self._states.arrange(slots, len(tokens))
        rows = slice(first, first + len(place))
        ids = np.empty(len(place), np.int64)
        ids[place] = tokens
        num_before = self._states.num_tokens[rows].copy()
        check_prefill(self.engine.config, ids[:, None], None, num_before, self.capacity)
        if self.capacity is not None:
            num_guesses = min(num_guesses, self.capacity - 1 - int(num_before.max()))
        read_ids, logits, *arrays = self._run(rows, ids, num_before, num_guesses)
        for row, slot in zip(place.tolist(), slots, strict=True):
            # Copies, or one slot would keep what was read for all of the call.
            self._ahead[slot] = dict(zip(self._states.arrays, (array[row].copy() for array in arrays), strict=True))
        return read_ids[place, 1:], logits[place]

    def keep(self, slot: int, num_tokens: int) -> None:
        found = self._ahead.pop(slot)
        if found is not None:
            self._states.keep_tokens(slot, found, num_tokens)

    def rollback(self, slot: int, mark: Mark) -> None:
        self._ahead.pop(slot, None)
        super().rollback(slot, mark)

    def release(self, slot: int) -> None:
        self._ahead.pop(slot, None)
        super().release(slot)

    def _run(self, rows: slice, ids: np.ndarray, num_before: np.ndarray, num_guesses: int) -> list[np.ndarray]:
        """The tokens read [B, T], their logits, and what each state array would get."""
        states, num_used = self._states, self._num_used_slots(rows)
        given = {
            "token_ids": ids,
            "num_before": num_before,
            "num_tokens": np.array(num_guesses + 1),
            "least_log_probability": np.array(np.log(LEAST_PROBABILITY), np.float32),
        }
        if self.engine.config.skips:
            given["num_skipped"] = states.num_skipped[rows]
        for name, array in states.arrays.items():
            given[name] = array[rows, :num_used] if name in states.rings and num_used is not None else array[rows]
        return self._session.run(["read_ids", "logits", *self._names], given, RUN_OPTIONS)
