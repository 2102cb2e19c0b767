"""Slots of the onnx engine whose tokens leave the loops early, and that the deeper loops then never read."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from griffinlm.checkpoint import Checkpoint
from griffinlm.checkpoint.exits import Exits
from griffinlm.edge.call import RUN_OPTIONS
from griffinlm.edge.engine import activation_levels, new_session, require_room
from griffinlm.edge.executor import OnnxExecutor
from griffinlm.edge.loops import NORMED, OUT, build_head_graph, build_last_graph, build_loop_graph
from griffinlm.edge.model import NEW
from griffinlm.edge.slots import num_used_slots
from griffinlm.executor import SettledSlots, check_prefill

if TYPE_CHECKING:
    from griffinlm.edge.engine import OnnxEngine


class LoopSessions(NamedTuple):
    """The parts that a token goes through one after another. Weights are held once more beside the whole model's."""

    loop: Any
    last: Any | None
    """The layers behind the last loop; None where there are none."""
    head: Any


def loop_sessions(checkpoint: Checkpoint, window_dtype: str, threads: int | None) -> LoopSessions:
    """The sessions of a recursive model's parts.

    Raises:
        CheckpointError, NotEnoughMemoryError: as `engine.build_engine`.
    """
    require_room(checkpoint, 0, window_dtype, threads)
    config, levels = checkpoint.config, activation_levels()
    built = [build_loop_graph(checkpoint, window_dtype, levels), build_head_graph(checkpoint, levels)]
    if config.num_looped_layers < config.num_layers:
        built.append(build_last_graph(checkpoint, window_dtype, levels))
    loop, head, *last = (new_session(one, checkpoint, threads) for one in built)
    return LoopSessions(loop, last[0] if last else None, head)


class _Change(NamedTuple):
    """What a call has written over in one array of the state, in n slots that stood at the same loop."""

    name: str
    places: np.ndarray | None
    """In a ring, the place that was written for each slot [n]; None is all of the row."""
    before: np.ndarray
    """[n, ...]."""


class OnnxSkippingExecutor(SettledSlots, OnnxExecutor):
    """The onnx form of `griffinlm.executor.WithdrawingExecutor` for a model that skips.

    Rows at all depths are one call of the shared layers. Their states are copied together for it, since the loops of a
    slot do not lie side by side.

    Slots take no low-rank adapter.

    Args:
        sessions: as `loop_sessions` makes them of the engine's model.
        exits: say whether a token may leave, behind every loop but the last; None lets none leave.
    """

    def __init__(
        self, engine: "OnnxEngine", sessions: LoopSessions, exits: Exits | None, num_slots: int, capacity: int | None
    ) -> None:
        super().__init__(engine, num_slots, capacity)
        recursion = engine.config.recursion
        assert recursion is not None
        assert recursion.skips
        self.num_loops, self._sessions, self._exits = recursion.num_loops, sessions, exits
        looped, width = engine.config.num_looped_layers, engine.config.num_shared_layers
        self._looped = {
            name: [_at_layer(name, _layer_of(name) + loop * width) for loop in range(self.num_loops)]
            for name in self._states.arrays
            if _layer_of(name) < width
        }
        """By the name of a state array of the first loop, its name in every loop."""
        self._behind = {n: [n] * self.num_loops for n in self._states.arrays if _layer_of(n) >= looped}
        """Those of the layers behind the last loop, which belong to it."""
        self._x, self._normed = (np.zeros((num_slots, engine.config.width), np.float32) for _ in range(2))
        """By slot, the token on its way, and the same after the final norm."""
        self._depth: dict[int, int] = {}
        """Loops that the token on its way has been through, by slot."""
        self._changes: dict[int, list[tuple[_Change, int]]] = {}
        """By slot, what these loops have written over, and the slot's place among it."""

    def enter(self, slots: Sequence[int], tokens: Sequence[int]) -> None:
        ids, rows = np.asarray(tokens, np.int64)[:, None], self._states.rows_of(slots)
        check_prefill(self.engine.config, ids, None, self._states.num_tokens[rows], self.capacity)
        self._x[list(slots)] = self.engine.embedding.rows(ids)[:, 0]
        self._states.num_tokens[rows] += 1
        self._states.hold(int(self._states.num_tokens[rows].max()))
        self._depth |= dict.fromkeys(slots, 0)
        self._changes |= {slot: [] for slot in slots}

    def run_loop(self, slots: Sequence[int]) -> list[bool]:
        depths = self._run(slots)
        if self._exits is None:
            return [False] * len(slots)
        normed = np.broadcast_to(self._normed[list(slots), None], (len(slots), self.num_loops - 1, self._x.shape[1]))
        is_sure = self._exits.confidence(normed) >= np.asarray(self._exits.thresholds)
        return [depth < self.num_loops and bool(row[depth - 1]) for depth, row in zip(depths, is_sure, strict=True)]

    def leave(self, slots: Sequence[int]) -> np.ndarray:
        for slot, row in zip(slots, self._states.rows_of(slots), strict=True):
            self._states.num_skipped[row, self._forget(slot) - 1 :] += 1
        return self._sessions.head.run(["logits"], {NORMED: self._normed[list(slots)]}, RUN_OPTIONS)[0]

    def withdraw(self, slot: int) -> None:
        if slot not in self._depth:
            return
        (row,) = self._states.rows_of([slot])
        for change, place in self._changes[slot]:
            kept = self._states.arrays[change.name][row]
            kept[... if change.places is None else change.places[place]] = change.before[place]
        self._states.num_tokens[row] -= 1
        self._forget(slot)

    def _settle(self, slots: Sequence[int]) -> None:
        """Ends the way of the slots' tokens through all loops."""
        while going := [slot for slot in slots if self._depth.get(slot, self.num_loops) < self.num_loops]:
            self._run(going)
        for slot in slots:
            self._forget(slot)

    def _forget(self, slot: int) -> int:
        """Of a token on its way; the loops that it has been through."""
        self._changes.pop(slot, None)
        return self._depth.pop(slot, 0)

    def _run(self, slots: Sequence[int]) -> list[int]:
        """The next loop of each slot's token; the loops that they have then been through."""
        # Slots of one loop lie side by side, so that its arrays are looked at once.
        ordered = sorted(slots, key=self._depth.__getitem__)
        loops = np.array([self._depth[slot] for slot in ordered])
        self._run_layers(self._sessions.loop, ordered, loops, self._looped, {"loop_of": loops})
        self._depth |= {slot: self._depth[slot] + 1 for slot in slots}
        done = [slot for slot in slots if self._depth[slot] == self.num_loops]
        if done and self._sessions.last is not None:
            self._run_layers(self._sessions.last, done, np.full(len(done), self.num_loops - 1), self._behind, {})
        return [self._depth[slot] for slot in slots]

    def _run_layers(
        self,
        session: Any,
        slots: Sequence[int],
        loops: np.ndarray,
        names: Mapping[str, Sequence[str]],
        given: Mapping[str, np.ndarray],
    ) -> None:
        """Some layers over each slot's token, whose states they bring forward.

        Args:
            loops: of each slot, ascending.
            names: by a graph's name of a state array, its name in every loop.
            given: further inputs of the graph.
        """
        states, rows = self._states, self._states.rows_of(slots)
        skipped = np.column_stack([np.zeros_like(rows), states.num_skipped[rows]])
        num_before = states.num_tokens[rows] - 1 - skipped[np.arange(len(rows)), loops]
        num_used = num_used_slots(int(num_before.max()))
        ends = np.searchsorted(loops, range(self.num_loops), "right").tolist()
        groups = [(loop, slice(first, end)) for loop, (first, end) in enumerate(pairwise([0, *ends])) if first < end]
        inputs = {**given, "x": self._x[list(slots)], "num_before": num_before}
        for name, of_loop in names.items():
            used = slice(num_used) if name in states.rings else slice(None)
            parts = [states.arrays[of_loop[loop]][rows[group], used] for loop, group in groups]
            inputs[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        outputs = [OUT, NORMED, *(name + NEW for name in names)]
        self._x[list(slots)], self._normed[list(slots)], *found = session.run(outputs, inputs, RUN_OPTIONS)
        for (name, of_loop), new in zip(names.items(), found, strict=True):
            num_slots = states.rings.get(name)
            for loop, group in groups:
                kept, own = states.arrays[of_loop[loop]], rows[group]
                places = None if num_slots is None else num_before[group] % num_slots
                where = (own,) if places is None else (own, places)
                change = _Change(of_loop[loop], places, kept[where])
                kept[where] = new[group] if places is None else new[group, 0]
                for place, slot in enumerate(slots[group]):
                    self._changes[slot].append((change, place))


def _layer_of(name: str) -> int:
    """The layer of a state array."""
    return int(name.split(".")[1])


def _at_layer(name: str, layer: int) -> str:
    """The state array of the same kind in another layer."""
    return f"layers.{layer}.{name.split('.', 2)[2]}"
