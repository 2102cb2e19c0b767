"""One call of the graph with its arrays bound: the same call can be run again with other numbers in them."""

from collections.abc import Callable, Mapping, Set
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from griffinlm.config import ModelConfig
from griffinlm.edge.low_rank import AdaptedRows
from griffinlm.edge.model import NEW


class Taps(NamedTuple):
    """Further outputs of a graph, for measuring: their sizes by name, and who looks at them after every call."""

    sizes: Mapping[str, int]
    observe: "Callable[[Call], None]"


class Call:
    """Arrays of the graph's inputs and outputs for a number of rows, tokens and logits.

    Args:
        arrays: the state's arrays of all slots; `rows` of them are read where they lie.
        rings: names of those arrays whose second axis is the ring's slots.
        num_used_slots: how many of a ring's slots are read, where fewer than all can hold anything.
        adapted: which rows have an adapter; None where the graph has none. Its arrays are kept and may be filled anew.
        num_skipping_loops: loops whose skipped tokens the graph is told; 0 where the model does not skip.
    """

    def __init__(
        self,
        session: Any,
        config: ModelConfig,
        arrays: Mapping[str, np.ndarray],
        rings: Set[str],
        rows: slice,
        num_tokens: int,
        num_logits: int,
        num_used_slots: int | None,
        taps: Taps | None = None,
        adapted: AdaptedRows | None = None,
        num_skipping_loops: int = 0,
    ) -> None:
        num_rows = rows.stop - rows.start
        self.embedded = np.empty((num_rows, num_tokens, config.width), np.float32)
        self.positions = np.empty((num_rows, num_tokens), np.int64)
        self.num_before = np.empty(num_rows, np.int64)
        self.num_skipped = np.empty((num_rows, num_skipping_loops), np.int64)
        self.logit_index = np.zeros((num_logits, 2), np.int64)
        self.logits = np.empty((num_logits, config.vocab_size), np.float32)
        self.new: dict[str, np.ndarray] = {}
        """By the name of the state array: the array after the call, or the new rows of a ring."""
        self.tapped = {} if taps is None else {name: np.empty(size, np.float32) for name, size in taps.sizes.items()}
        self._taps = taps
        self._session, self._binding = session, session.io_binding()
        skipping = ("num_skipped",) if num_skipping_loops else ()
        for name in ("embedded", "positions", "num_before", "logit_index", *skipping):
            self._bind(self._binding.bind_input, name, getattr(self, name))
        self.adapted = adapted
        for name, array in ({} if adapted is None else adapted._asdict()).items():
            self._bind(self._binding.bind_input, name, array)
        self._bind(self._binding.bind_output, "logits", self.logits)
        for name, array in self.tapped.items():
            self._bind(self._binding.bind_output, name, array)
        for name, array in arrays.items():
            before = array[rows]
            shape = (num_rows, num_tokens, *array.shape[2:]) if name in rings else before.shape
            self.new[name] = np.empty(shape, array.dtype)
            if name in rings and num_used_slots is not None:
                before = before[:, :num_used_slots]
            self._bind(self._binding.bind_input, name, before)
            self._bind(self._binding.bind_output, name + NEW, self.new[name])

    def run(self) -> None:
        """Computes `logits` and `new` from what stands in the other arrays."""
        self._session.run_with_iobinding(self._binding, RUN_OPTIONS)
        if self._taps is not None:
            self._taps.observe(self)

    def _bind(self, bind: Any, name: str, array: np.ndarray) -> None:
        assert array.flags.c_contiguous, name
        bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


RUN_OPTIONS = onnxruntime.RunOptions()
RUN_OPTIONS.log_severity_level = 3
