"""State tuning: the recurrent state behind BOS is trained, and nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from griffinlm.config import ModelConfig
from griffinlm.hf import GriffinCache, GriffinForCausalLM
from griffinlm.language_model import LanguageModel
from griffinlm.model.griffin import GriffinState
from griffinlm.model.state import from_named, to_array, to_named
from griffinlm.state import State
from griffinlm.train.errors import TrainError

TUNED_STATE = "tuned_state"
HIDDEN = ".hidden"


class TunedState(nn.Module):
    """The state of one row, those of its arrays parameters whose names end with `ends`; the rest stays as it is."""

    def __init__(self, config: ModelConfig, state: GriffinState, ends: tuple[str, ...] = (HIDDEN,)) -> None:
        super().__init__()
        self._config = config
        named = to_named(config, state)
        self.names = tuple(name for name in named if name.endswith(ends))
        self.trained = nn.ParameterList([nn.Parameter(named[name].detach().clone()) for name in self.names])
        self._fixed = {name: tensor for name, tensor in named.items() if name not in self.names}

    def state(self, num_rows: int) -> GriffinState:
        """The state of `num_rows` rows, all of which begin from it."""
        named = {name: tensor.to(self.trained[0].device) for name, tensor in self._fixed.items()}
        named |= dict(zip(self.names, self.trained, strict=True))
        return from_named(self._config, {n: t.expand(num_rows, *t.shape[1:]) for n, t in named.items()})

    def arrays(self) -> dict[str, np.ndarray]:
        """The trained numbers by the names of a state's arrays, float32 of one row."""
        return {name: to_array(values) for name, values in zip(self.names, self.trained, strict=True)}


def tune_state(model: GriffinForCausalLM, bos_id: int) -> TunedState:
    """Makes a model begin every row from a state whose recurrent part is trained, and freezes everything else.

    The rest of the state, which is attention's one key and value and the inputs of the convolutions, is what BOS
    leaves. Rows [B, T] begin with BOS, which is not read again; what is predicted from it has no meaning. A model that
    has not been trained so gives every other token the probability that it had.

    Raises:
        TrainError: the model has no recurrent block, or its state has no fixed size.
    """
    config = model.config.model_config
    if config.recurrent is None or config.needs_capacity:
        kind = "no recurrent block" if config.recurrent is None else "global attention, so no state of fixed size"
        raise TrainError(f"the model has {kind}; there is no state to tune")
    model.requires_grad_(False)
    with torch.no_grad():
        bos = torch.full((1, 1), bos_id, device=model.device)
        cache = model.model(input_ids=bos, past_key_values=GriffinCache()).past_key_values
    tuned = TunedState(config, cache.state)
    model.register_module(TUNED_STATE, tuned)

    def begin(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return arguments, {**named, **_from_state(tuned, bos_id, named)}

    model.model.register_forward_pre_hook(begin, with_kwargs=True)
    return tuned


def _from_state(tuned: TunedState, bos_id: int, named: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by which rows go on from the state: one column more, which it has read, and BOS as padding."""
    tokens: Tensor = named["input_ids"]
    if not bool((tokens[:, 0] == bos_id).all()):
        raise TrainError(f"a row begins with another token than BOS ({bos_id}), which a tuned state has read")
    mask = named.get("attention_mask")
    mask = torch.ones_like(tokens) if mask is None else mask.clone()
    mask[:, 0] = 0
    read = torch.ones_like(mask[:, :1])
    return {
        "past_key_values": GriffinCache(tuned.state(len(tokens))),
        "attention_mask": torch.cat([read, mask], dim=1),
    }


def write_tuned_state(model: LanguageModel, hidden: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes the adapter that a tuned state is: the file of a state of `model` with these recurrent arrays.

    Raises:
        GriffinError: the file cannot be written, or the tokenizer has no BOS.
    """
    bos_id = model.tokenizer.bos_id
    if bos_id is None:
        raise TrainError("the tokenizer has no begin token; a tuned state is one behind it")
    _, state = model.forward([[bos_id]])
    State({**state.arrays(), **hidden}, model.identity).save(path)
