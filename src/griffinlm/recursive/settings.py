"""What a conversion is asked for, and the layers that it looks at."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from griffinlm.config import ConfigError, ModelConfig, RecursionConfig, Tie
from griffinlm.errors import GriffinError

Init = Literal["stepwise", "average", "lower"]
LowRankInit = Literal["svd", "zero"]


class RecursiveError(GriffinError):
    """A conversion that is asked for wrongly, or of a model that cannot be converted."""


@dataclass(frozen=True)
class Recursion:
    """How a model becomes a recursive one (Relaxed Recursive Transformers, arXiv 2410.20672, sections 2.2 and 2.3)."""

    num_loops: int
    init: Init = "average"
    """What a shared layer begins as: one of the layers at regular distances, the mean of those that become it, or the
    first of those."""
    rank: int = 0
    """Of the term by which each layer differs from the shared one; 0 for none."""
    tie: Tie = "matrices"
    """As in `RecursionConfig`."""
    low_rank: LowRankInit = "svd"
    """What the terms begin as: the nearest to what a layer lost, or zero."""
    seed: int = 0
    """Of the random numbers that terms of nothing begin with, and of those that find terms of large matrices."""

    def __post_init__(self) -> None:
        for name, allowed in (("init", get_args(Init)), ("low_rank", get_args(LowRankInit))):
            value = getattr(self, name)
            if value not in allowed:
                raise RecursiveError(f"{name} is {str(value)[:60]!r}; allowed are {', '.join(allowed)}")

    def config_of(self, config: ModelConfig) -> ModelConfig:
        """The recursive model that a model becomes.

        Raises:
            RecursiveError: the model is recursive already, or has no room for so many loops.
        """
        if config.recursion is not None:
            raise RecursiveError(
                f"the model is recursive already, with {config.recursion.num_loops} loops",
                hint="convert the model that it was made from",
            )
        try:
            recursion = RecursionConfig(num_loops=self.num_loops, tie=self.tie, rank=self.rank)
            return dataclasses.replace(config, recursion=recursion)
        except ConfigError as error:
            raise RecursiveError(str(error), error.hint) from error

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


def stepwise_layers(config: ModelConfig) -> list[int]:
    """For every shared layer of a recursive model the layer that it begins as.

    Of the layers in the loops those at round(linspace(0, R K - 1, K)), halves to even, so that the first and the last
    are among them; a layer of another kind gives way to the nearest of the right kind, the lower one of two.
    """
    kinds = config.block_kinds[: config.num_looped_layers]
    places = np.linspace(0, len(kinds) - 1, config.num_shared_layers).round().astype(int).tolist()
    layers = range(len(kinds))
    return [
        min((layer for layer in layers if kinds[layer] == kind), key=lambda layer, place=place: abs(layer - place))
        for place, kind in zip(places, kinds, strict=False)
    ]
