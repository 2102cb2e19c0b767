"""The plain model that a recursive one computes, for the tests that compare the two."""

import dataclasses
from collections.abc import Callable

import numpy as np

from griffinlm.config import LOW_RANK, ModelConfig, is_matrix

Read = Callable[[str], np.ndarray]
"""Gives the values of a parameter by its name."""


def unrolled(config: ModelConfig, read: Read) -> tuple[ModelConfig, Read]:
    """The same model without recursion: W' + up down in the place of a shared matrix, copies of what else is shared."""
    shapes = config.place_shapes()

    def values(place: str) -> np.ndarray:
        shared, term = read(config.parameter_at(place)), place.removesuffix(".weight") + LOW_RANK
        if not is_matrix(place) or f"{term}.down" not in shapes:
            return shared
        added = read(f"{term}.up").astype(np.float64) @ read(f"{term}.down")
        return (shared + (added if shared.ndim == 2 else added.swapaxes(1, 2))).astype(np.float32)

    return dataclasses.replace(config, recursion=None), values
