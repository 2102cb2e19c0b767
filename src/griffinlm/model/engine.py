"""The torch engine: the weights of a model, ready to run."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from griffinlm.checkpoint.adapter import AdapterTerms, LowRank
from griffinlm.config import ModelConfig
from griffinlm.executor import Extra
from griffinlm.model.executor import TorchExecutor
from griffinlm.model.graph_executor import GraphExecutor
from griffinlm.model.griffin import Griffin
from griffinlm.model.loops import ExitRule, TorchLoopExecutor
from griffinlm.model.low_rank import LowRankTerm
from griffinlm.model.recursion import tie
from griffinlm.model.skipping import TorchSkippingExecutor
from griffinlm.model.state import to_tensor
from griffinlm.progress import progress
from griffinlm.state import state_bytes

PRECISIONS = ("float32", "bfloat16")
WINDOW_DTYPES = ("float32", "bfloat16", "float16")


class TorchEngine:
    """The weights of a model in one precision on one device, and beside them adapters in float32."""

    def __init__(self, model: Griffin, window_dtype: str, adapters: AdapterTerms | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.config = model.config
        self.window_dtype = window_dtype
        self.precision = str(model.embedding.weight.dtype).removeprefix("torch.")
        self.device = model.embedding.weight.device
        self._executor = GraphExecutor if self.device.type == "cuda" else TorchExecutor
        self.adapters = {name: self._on_device(terms) for name, terms in (adapters or {}).items()}

    def extra(self, capacity: int | None = None) -> Extra:
        """The rows that an executor has beside its slots."""
        num_bytes = state_bytes(self.config, capacity, self.window_dtype, self.precision)
        return Extra(self._executor.num_spare_rows * num_bytes)

    def executor(self, num_slots: int, capacity: int | None = None) -> TorchExecutor:
        """New slots, all empty; on a GPU their steps are CUDA graphs."""
        return self._executor(self, num_slots, capacity)

    def loop_executor(
        self, num_slots: int, capacity: int | None = None, exit_rule: ExitRule | None = None
    ) -> TorchLoopExecutor | TorchSkippingExecutor:
        """New slots whose tokens go through the loops one by one; without a rule none leaves early.

        Raises:
            ExecutorError: the model has no loops.
        """
        kind = TorchSkippingExecutor if self.config.skips else TorchLoopExecutor
        return kind(self, num_slots, capacity, exit_rule)

    def _on_device(self, terms: Mapping[str, LowRank]) -> dict[torch.nn.Module, LowRankTerm]:
        return {
            self.model.get_submodule(name.removesuffix(".weight")): LowRankTerm(
                *(to_tensor(array).to(self.device) for array in (term.down, term.up))
            )
            for name, term in terms.items()
        }


def build_engine(
    config: ModelConfig,
    read: Callable[[str], np.ndarray],
    precision: str,
    window_dtype: str,
    device: str,
    adapters: AdapterTerms | None = None,
) -> TorchEngine:
    """Fills a model tensor by tensor, each turned into the precision as it is read.

    Args:
        read: gives the values of a parameter by name.
        adapters: low-rank terms by the name of the adapter and that of the matrix.
    """
    with torch.device("meta"):
        model = Griffin(config)
    dtype = getattr(torch, precision)
    weights = {}
    for name in progress(config.parameter_shapes(), "loading"):
        weights[name] = to_tensor(read(name)).to(device=device, dtype=dtype, copy=True)
    model.load_state_dict({place: weights[config.parameter_at(place)] for place in config.place_shapes()}, assign=True)
    tie(model, config)
    return TorchEngine(model, window_dtype, adapters)
