"""Layers that share parameters, each with low-rank terms of its own. Put on the layers of a model from outside."""

from typing import Any

import torch
from torch import Tensor, nn

from griffinlm.config import LOW_RANK, ModelConfig
from griffinlm.model.low_rank import LowRankTerm


class LowRank(nn.Module):
    """up (down x), the term that a layer adds to its product with a shared matrix."""

    def __init__(self, down: tuple[int, ...], up: tuple[int, ...]) -> None:
        """Args: the shapes of `LowRankTerm`."""
        super().__init__()
        self.down, self.up = nn.Parameter(torch.zeros(down)), nn.Parameter(torch.zeros(up))

    def forward(self, x: Tensor) -> Tensor:
        return LowRankTerm(self.down, self.up)(x)


def add_low_rank(model: nn.Module, config: ModelConfig) -> None:
    """Gives every linear and gate of a looped layer its own term: it then computes W x + b + up (down x)."""
    shapes, end = config.place_shapes(), f"{LOW_RANK}.down"
    for place, down in shapes.items():
        if place.endswith(end):
            layer = model.get_submodule(place.removesuffix(end))
            layer.add_module(LOW_RANK.removeprefix("."), LowRank(down, shapes[f"{place.removesuffix('down')}up"]))
            layer.register_forward_hook(_with_term)


def _with_term(layer: nn.Module, inputs: tuple[Any, ...], product: Tensor) -> Tensor:
    return product + layer.get_submodule(LOW_RANK.removeprefix("."))(*inputs)


def tie(model: nn.Module, config: ModelConfig) -> None:
    """Puts at every place the parameter that `ModelConfig.parameter_at` names; parameters that were there go.

    Whatever makes new parameters out of old ones, such as `to_empty`, makes one for each place: then layers must be
    tied again.
    """
    for place in config.place_shapes():
        name = config.parameter_at(place)
        if name != place:
            layer, _, field = place.rpartition(".")
            setattr(model.get_submodule(layer), field, model.get_parameter(name))
