"""Slots of the torch engine whose steps are CUDA graphs: one replay instead of hundreds of launches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from griffinlm.executor import Draw, LogitsChoice, check_tokens, require_capacity
from griffinlm.kernels.device import next_power_of_two
from griffinlm.model.cuda_graph import Program
from griffinlm.model.decoding import read_token
from griffinlm.model.executor import TorchExecutor
from griffinlm.model.griffin import GriffinState
from griffinlm.model.sampling import Draws, cuts, draw_tokens, to_draws

if TYPE_CHECKING:
    from griffinlm.model.engine import TorchEngine

STANDING_STILL = -1


class Kind(NamedTuple):
    """Steps of one kind are replays of one graph."""

    rows: int
    """A power of two, or all slots."""
    num_choices: int | None
    """How many ids may be drawn; None where logits are wanted instead."""
    has_cuts: bool = False


class GraphExecutor(TorchExecutor):
    """A `TorchExecutor` that is a `DrawingExecutor`. Prompts, and steps of slots with adapters, run outside of graphs.

    A step of some rows runs as one of the next power of two; the rows too many stand still in a spare slot.
    """

    num_spare_rows = 1

    def __init__(self, engine: "TorchEngine", num_slots: int, capacity: int | None) -> None:
        super().__init__(engine, num_slots, capacity)
        self._num_tokens = np.zeros(num_slots, np.int64)
        """A copy of the state's on the host, so that a step need not wait for the device to be checked."""
        self.state.num_tokens[num_slots] = STANDING_STILL
        device = engine.device
        self._slots = torch.full((num_slots,), num_slots, device=device)
        self._tokens = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._draws = Draws(*(column.expand(num_slots).contiguous() for column in self._nothing_drawn()))
        self._programs: dict[Kind, Program] = {}
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def prefill(
        self, slots: Sequence[int], tokens: np.ndarray, positions: np.ndarray | None, logits: LogitsChoice
    ) -> np.ndarray | None:
        out = super().prefill(slots, tokens, positions, logits)
        self._copy_num_tokens(slots)
        return out

    @torch.inference_mode()
    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        if any(self._adapter_of[slot] is not None for slot in slots):
            return super().step(slots, tokens)
        return self._replay(Kind(self._num_rows(len(slots)), None), slots, tokens)

    @torch.inference_mode()
    def step_and_draw(
        self, slots: Sequence[int], tokens: Sequence[int], draws: Sequence[Draw], num_choices: int | None = None
    ) -> np.ndarray:
        num_choices = self.engine.config.vocab_size if num_choices is None else num_choices
        has_cuts = any(map(cuts, draws))
        columns = to_draws(draws, num_choices)
        if any(self._adapter_of[slot] is not None for slot in slots):
            logits = torch.from_numpy(super().step(slots, tokens)).to(self.engine.device)
            here = Draws(*(column.to(logits.device) for column in columns))
            return draw_tokens(logits[:, :num_choices], here, has_cuts).cpu().numpy()
        for kept, given in zip(self._draws, columns, strict=True):
            kept[: len(draws)].copy_(given, non_blocking=True)
        return self._replay(Kind(self._num_rows(len(slots)), num_choices, has_cuts), slots, tokens)

    def rollback(self, slot: int, mark: GriffinState) -> None:
        super().rollback(slot, mark)
        self._copy_num_tokens([slot])

    def release(self, slot: int) -> None:
        super().release(slot)
        self._num_tokens[slot] = 0

    def _replay(self, kind: Kind, slots: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        given, rows = np.asarray(tokens, np.int64), list(slots)
        check_tokens(self.engine.config, given)
        require_capacity(int(self._num_tokens[rows].max()) + 1, self.capacity)
        if kind not in self._programs:
            self._programs[kind] = self._new_program(kind)
        spare = [self.num_slots] * (kind.rows - len(rows))
        self._slots[: kind.rows].copy_(torch.tensor(rows + spare), non_blocking=True)
        self._tokens[: len(rows)].copy_(torch.from_numpy(given), non_blocking=True)
        out = self._programs[kind]()[: len(rows)].cpu().numpy()
        self._num_tokens[rows] += 1
        return out

    def _new_program(self, kind: Kind) -> Program:
        slots, tokens = self._slots[: kind.rows], self._tokens[: kind.rows]
        draws = Draws(*(column[: kind.rows] for column in self._draws))
        # Without the executor itself: one that is given up frees its slots at once, not when cycles are looked for.
        model, state = self.engine.model, self.state

        def run() -> Tensor:
            logits = read_token(model, state, slots, tokens)
            if kind.num_choices is None:
                return logits
            return draw_tokens(logits[:, : kind.num_choices], draws, kind.has_cuts)

        # Warming up and capturing change no conversation: all rows stand still.
        self._slots.fill_(self.num_slots)
        return Program(run, self.engine.device, self._pool)

    def _num_rows(self, num_rows: int) -> int:
        return min(next_power_of_two(num_rows), self.num_slots)

    def _copy_num_tokens(self, slots: Sequence[int]) -> None:
        self._num_tokens[list(slots)] = self.state.num_tokens[self._index(slots)].cpu().numpy()

    def _nothing_drawn(self) -> Draws:
        """One row that takes the best token."""
        columns = to_draws([Draw(0.0, temperature=0.0)], self.engine.config.vocab_size)
        return Draws(*(column.to(self.engine.device) for column in columns))
