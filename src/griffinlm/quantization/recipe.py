"""Which parameter of a model is stored in which format, and how a parameter is seen as a matrix."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from griffinlm.config import LOW_RANK, ModelConfig, is_matrix
from griffinlm.quantization.formats import FLOAT32, OFFERED_NAMES, Format, QuantizationError

GATES = (".rg_lru.input_gate.weight", ".rg_lru.recurrence_gate.weight")


@dataclass(frozen=True)
class Recipe:
    """The format of every matrix of a model: those of linears, of the gates, and the embedding.

    Under `int8-channel` the gates become `int8-block128`: their blocks are small matrices, each with inputs of its own,
    that a single integer product over all inputs cannot take. The terms beside a matrix that layers share stay float32
    where no pattern matches them, and those of gates always.
    """

    default: Format
    overrides: tuple[tuple[str, Format], ...] = ()
    """Patterns (`*`, `?`, `[...]`) of parameter names, and the format of what they match; the first match wins."""

    @property
    def has_channels(self) -> bool:
        """Whether it asks for `int8-channel` anywhere."""
        return any(format.is_channel for format in (self.default, *(format for _, format in self.overrides)))

    def format_of(self, name: str, shape: tuple[int, ...]) -> Format:
        """The format of a parameter, its blocks fitted to the matrix; float32 for whatever is no such matrix."""
        if not may_be_quantized(name, shape):
            return FLOAT32
        default = self.default if is_matrix(name) else FLOAT32
        format = next((format for pattern, format in self.overrides if fnmatchcase(name, pattern)), default)
        if format.is_channel and name.endswith(GATES):
            format = Format(8, 128)
        return format.fitted(matrix_shape(shape)[1])

    def formats(self, config: ModelConfig) -> dict[str, Format]:
        """The format of every parameter that may be quantized by name, those that stay float32 included.

        Raises:
            QuantizationError: a pattern matches none of them.
        """
        shapes = {name: shape for name, shape in config.parameter_shapes().items() if may_be_quantized(name, shape)}
        for pattern, _ in self.overrides:
            if not any(fnmatchcase(name, pattern) for name in shapes):
                raise QuantizationError(
                    f"pattern {pattern[:100]!r} matches no matrix of this model",
                    hint="matrices are called like embedding.weight, layers.0.mlp.up.weight",
                )
        return {name: self.format_of(name, shape) for name, shape in shapes.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` gives back an equal recipe."""
        return {"default": self.default.name, "overrides": [[pattern, f.name] for pattern, f in self.overrides]}

    @classmethod
    def from_dict(cls, values: Any) -> "Recipe":
        """The recipe that `to_dict` wrote.

        Raises:
            QuantizationError: a field is unknown, missing, or of the wrong type, or a format does not exist.
        """
        if not isinstance(values, Mapping) or values.keys() != {"default", "overrides"}:
            raise QuantizationError("a recipe must be a table of default and overrides")
        default, overrides = values["default"], values["overrides"]
        if not isinstance(default, str) or not isinstance(overrides, list) or not all(map(_is_pair, overrides)):
            raise QuantizationError("a recipe must have the name of a format, and pairs of pattern and format")
        return cls(Format.parse(default), tuple((pattern, Format.parse(name)) for pattern, name in overrides))


RECIPES = {"int4": Recipe(Format(4, 128)), "int8": Recipe(Format(8))}
"""The default recipe for each number of bits; every published figure is of one of them."""


def recipe_of(weights: str) -> Recipe:
    """The default recipe called `int4` or `int8`, or all matrices in the format of that name.

    Raises:
        QuantizationError: there is neither.
    """
    if weights in RECIPES:
        return RECIPES[weights]
    try:
        return Recipe(Format.parse(weights))
    except QuantizationError as error:
        allowed = ", ".join((*RECIPES, *OFFERED_NAMES))
        raise QuantizationError(f"weights is {weights[:60]!r}; allowed are {allowed}") from error


def may_be_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is a matrix, or one of the two in a linear's low-rank term."""
    return is_matrix(name) or (LOW_RANK in name and len(shape) == 2)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """[N, K] (out, in) of a matrix parameter; a gate [h, b_in, b_out] is the matrix [h * b_out, b_in]."""
    if len(shape) == 2:
        return shape[0], shape[1]
    return shape[0] * shape[2], shape[1]


def to_matrix(values: np.ndarray) -> np.ndarray:
    """A parameter as its matrix [N, K]: each block of a gate transposed, so that an output's inputs lie together."""
    return values if values.ndim == 2 else values.swapaxes(1, 2).reshape(matrix_shape(values.shape))


def from_matrix(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Undoes `to_matrix`."""
    if len(shape) == 2:
        return matrix
    return np.ascontiguousarray(matrix.reshape(shape[0], shape[2], shape[1]).swapaxes(1, 2))


def row_energy(energy: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Energy of a parameter's inputs as `quantize` takes it: [K], or [N, K] of a gate, from all its inputs [h * b_in].

    Raises:
        QuantizationError: there are more or fewer inputs.
    """
    num_inputs = shape[1] if len(shape) == 2 else shape[0] * shape[1]
    if energy.shape != (num_inputs,):
        raise QuantizationError(f"the input energy has shape {list(energy.shape)}; it must be [{num_inputs}]")
    return energy if len(shape) == 2 else np.repeat(energy.reshape(shape[:2]), shape[2], axis=0)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)
