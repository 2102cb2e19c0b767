"""The slots of the torch engine as an Executor."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from griffinlm.executor import ExecutorError, LogitsChoice, check_adapter, check_prefill, require_arrays
from griffinlm.model.griffin import GriffinState
from griffinlm.model.low_rank import RowTerms
from griffinlm.model.state import (
    from_named,
    new_state,
    tensors,
    to_named,
    to_numpy,
    to_tensor,
    without_earlier_documents,
)

if TYPE_CHECKING:
    from griffinlm.model.engine import TorchEngine


class TorchExecutor:
    """Slots as rows of one state on the engine's device."""

    num_spare_rows = 0
    """Rows of the state behind those of the slots."""

    def __init__(self, engine: "TorchEngine", num_slots: int, capacity: int | None) -> None:
        self.engine, self.num_slots, self.capacity = engine, num_slots, capacity
        rows = num_slots + self.num_spare_rows
        self.state = new_state(engine.config, rows, capacity, engine.window_dtype, engine.precision, engine.device)
        self._adapter_of: list[str | None] = [None] * num_slots

    @torch.inference_mode()
    def prefill(
        self, slots: Sequence[int], tokens: np.ndarray, positions: np.ndarray | None, logits: LogitsChoice
    ) -> np.ndarray | None:
        index = self._index(slots)
        num_tokens = self.state.num_tokens[index].cpu().numpy()
        check_prefill(self.engine.config, tokens, positions, num_tokens, self.capacity)
        given = None if positions is None else self._move(positions)
        before = self._gather(index)
        out, after = self.engine.model(self._move(tokens), before, given, logits, self._low_rank(slots))
        for kept, new in zip(tensors(self.state), tensors(after), strict=True):
            kept.index_copy_(0, index, new)
        if out is None:
            # Waits for a device that works behind the program's back, so that the call can be timed.
            self.state.num_tokens.cpu()
            return None
        return out.cpu().numpy()

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        logits = self.prefill(slots, np.asarray(tokens, np.int64)[:, None], None, "last")
        assert logits is not None
        return logits[:, 0]

    def mark(self, slot: int) -> GriffinState:
        return self._gather(self._index([slot]))

    def rollback(self, slot: int, mark: GriffinState) -> None:
        index = self._index([slot])
        for kept, old in zip(tensors(self.state), tensors(mark), strict=True):
            kept.index_copy_(0, index, old)

    def export_state(self, slot: int) -> dict[str, np.ndarray]:
        config = self.engine.config
        state = without_earlier_documents(config, self._gather(self._index([slot])))
        return to_numpy(to_named(config, state))

    def import_state(self, slot: int, arrays: dict[str, np.ndarray]) -> None:
        require_arrays(arrays, to_named(self.engine.config, self.state))
        named = {name: to_tensor(array).to(self.engine.device) for name, array in arrays.items() if name != "pending"}
        given = from_named(self.engine.config, named)
        for kept, new in zip(tensors(self.state), tensors(given), strict=True):
            if kept.shape[1:] != new.shape[1:] or kept.dtype != new.dtype:
                found, allowed = f"{new.dtype}{list(new.shape)}", f"{kept.dtype}{list(kept.shape)}"
                raise ExecutorError(f"a state's array is {found}; this executor's slots have {allowed}")
        self.rollback(slot, given)

    def use_adapter(self, slot: int, name: str | None) -> None:
        check_adapter(self.engine.adapters, name)
        self._adapter_of[slot] = name

    def release(self, slot: int) -> None:
        self._adapter_of[slot] = None
        for kept in tensors(self.state):
            kept[slot] = 0

    def _low_rank(self, slots: Sequence[int]) -> list[RowTerms]:
        """The rows of a call, by their adapters."""
        rows: dict[str, list[int]] = {}
        for row, slot in enumerate(slots):
            name = self._adapter_of[slot]
            if name is not None and self.engine.adapters[name]:
                rows.setdefault(name, []).append(row)
        return [RowTerms(self._index(numbers), self.engine.adapters[name]) for name, numbers in rows.items()]

    def _index(self, slots: Sequence[int]) -> torch.Tensor:
        return torch.tensor(list(slots), device=self.engine.device)

    def _gather(self, index: torch.Tensor) -> GriffinState:
        named = to_named(self.engine.config, self.state)
        return from_named(self.engine.config, {n: t.index_select(0, index) for n, t in named.items()})

    def _move(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.int64)).to(self.engine.device)
