"""The torch engine: the model as an Engine, its slots as an Executor."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from griffinlm.config import ModelConfig
from griffinlm.executor import ExecutorError, LogitsChoice, check_prefill
from griffinlm.model.griffin import Griffin, GriffinState
from griffinlm.model.state import (
    from_named,
    new_state,
    tensors,
    to_named,
    to_numpy,
    to_tensor,
    without_earlier_documents,
)
from griffinlm.progress import progress

PRECISIONS = ("float32", "bfloat16")
WINDOW_DTYPES = ("float32", "bfloat16", "float16")


class TorchEngine:
    """The weights of a model in one precision on one device."""

    def __init__(self, model: Griffin, window_dtype: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.config = model.config
        self.window_dtype = window_dtype
        self.precision = str(model.embedding.weight.dtype).removeprefix("torch.")
        self.device = model.embedding.weight.device

    def executor(self, num_slots: int, capacity: int | None = None) -> "TorchExecutor":
        return TorchExecutor(self, num_slots, capacity)


def build_engine(
    config: ModelConfig, read: Callable[[str], np.ndarray], precision: str, window_dtype: str, device: str
) -> TorchEngine:
    """Fills a model tensor by tensor, each turned into the precision as it is read.

    Args:
        read: gives the values of a parameter by name.
    """
    with torch.device("meta"):
        model = Griffin(config)
    dtype = getattr(torch, precision)
    weights = {}
    for name in progress(config.parameter_shapes(), "loading"):
        weights[name] = to_tensor(read(name)).to(device=device, dtype=dtype, copy=True)
    model.load_state_dict(weights, assign=True)
    return TorchEngine(model, window_dtype)


class TorchExecutor:
    """Slots as rows of one state on the engine's device."""

    def __init__(self, engine: TorchEngine, num_slots: int, capacity: int | None) -> None:
        self.engine, self.num_slots, self.capacity = engine, num_slots, capacity
        self.state = new_state(engine.config, num_slots, capacity, engine.window_dtype, engine.precision, engine.device)

    @torch.inference_mode()
    def prefill(
        self, slots: Sequence[int], tokens: np.ndarray, positions: np.ndarray | None, logits: LogitsChoice
    ) -> np.ndarray | None:
        index = self._index(slots)
        num_tokens = self.state.num_tokens[index].cpu().numpy()
        check_prefill(self.engine.config, tokens, positions, num_tokens, self.capacity)
        given = None if positions is None else self._move(positions)
        before = self._gather(index)
        out, after = self.engine.model(self._move(tokens), before, given, logits)
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
        named = {name: to_tensor(array).to(self.engine.device) for name, array in arrays.items() if name != "pending"}
        given = from_named(self.engine.config, named)
        for kept, new in zip(tensors(self.state), tensors(given), strict=True):
            if kept.shape[1:] != new.shape[1:] or kept.dtype != new.dtype:
                found, allowed = f"{new.dtype}{list(new.shape)}", f"{kept.dtype}{list(kept.shape)}"
                raise ExecutorError(f"a state's array is {found}; this executor's slots have {allowed}")
        self.rollback(slot, given)

    def release(self, slot: int) -> None:
        for kept in tensors(self.state):
            kept[slot] = 0

    def _index(self, slots: Sequence[int]) -> torch.Tensor:
        return torch.tensor(list(slots), device=self.engine.device)

    def _gather(self, index: torch.Tensor) -> GriffinState:
        named = to_named(self.engine.config, self.state)
        return from_named(self.engine.config, {n: t.index_select(0, index) for n, t in named.items()})

    def _move(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.int64)).to(self.engine.device)
