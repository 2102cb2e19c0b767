"""States as a model would leave them, with random numbers in the place of a model's."""

import dataclasses

import numpy as np

from griffinlm.config import ModelConfig
from griffinlm.state import Fingerprint, Identity, is_ring, state_layout

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Model:
    """What a store must know of a model."""

    config: ModelConfig
    window_dtype: str = "float32"
    precision: str = "float32"
    weights: str = "a" * 64

    @property
    def identity(self) -> Identity:
        return Identity(lambda: Fingerprint(self.weights, self.precision, self.window_dtype, tokenizer=""))

    @property
    def capacity(self) -> int | None:
        return 40 if self.config.needs_capacity else None


GRIFFIN = Model(ModelConfig.preset("tiny-griffin"))


def empty(model: Model) -> Arrays:
    layout = state_layout(model.config, 1, model.capacity, model.window_dtype, model.precision)
    return {name: np.zeros(spec.shape, spec.dtype) for name, spec in layout.items()} | {"pending": np.array([-1])}


def after(arrays: Arrays, num_new_tokens: int, seed: int) -> Arrays:
    """The state after more tokens: rings are written slot by slot, all else is new."""
    random = np.random.default_rng(seed)
    before = int(arrays["num_tokens"][0])
    new = {}
    for name, array in arrays.items():
        values = random.standard_normal(array.shape) * 50
        # Bits that arithmetic would not keep: a negative zero, and what is no number.
        values.flat[0] = -0.0
        if array.dtype.kind != "i":
            values.flat[-1] = np.nan
        new[name] = values.astype(array.dtype)
        if is_ring(name):
            slots = (before + np.arange(num_new_tokens)) % array.shape[1]
            untouched = np.setdiff1d(np.arange(array.shape[1]), slots)
            new[name][:, untouched] = array[:, untouched]
    return new | {"num_tokens": np.array([before + num_new_tokens]), "pending": np.array([seed % 5 - 1])}


def is_same(one: Arrays, other: Arrays) -> bool:
    """Whether names, types, shapes and bytes are equal."""
    return one.keys() == other.keys() and all(
        (one[n].dtype, one[n].shape, one[n].tobytes()) == (other[n].dtype, other[n].shape, other[n].tobytes())
        for n in one
    )
