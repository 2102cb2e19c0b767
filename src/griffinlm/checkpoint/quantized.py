"""The tensors of a quantized checkpoint: a matrix P is stored as its numbers `P` and their scales `P.scales`."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from griffinlm.checkpoint.errors import CheckpointError
from griffinlm.checkpoint.tensor_source import ExpectedTensor, TensorInfo, TensorSource, is_finite
from griffinlm.config import ModelConfig
from griffinlm.quantization import FLOAT32, Recipe, dequantize
from griffinlm.quantization.recipe import from_matrix, matrix_shape

SCALES = ".scales"


def stored_tensors(config: ModelConfig, recipe: Recipe) -> dict[str, ExpectedTensor]:
    """Every tensor that the files of a model quantized by `recipe` hold, in our order, scales behind their numbers.

    Raises:
        QuantizationError: a pattern of the recipe matches nothing.
    """
    formats = recipe.formats(config)
    tensors: dict[str, ExpectedTensor] = {}
    for name, shape in config.parameter_shapes().items():
        format = formats.get(name)
        if format is None or not format.is_quantized:
            tensors[name] = ExpectedTensor(shape, ("float32",))
            continue
        numbers, scales = format.arrays(*matrix_shape(shape))
        tensors[name] = ExpectedTensor(numbers.shape, (numbers.dtype,))
        tensors[name + SCALES] = ExpectedTensor(scales.shape, (scales.dtype,))
    return tensors


class DequantizedTensors:
    """A container of quantized tensors seen as float32 parameters; each is dequantized when it is read."""

    def __init__(self, path: Path, source: TensorSource, config: ModelConfig, recipe: Recipe) -> None:
        """`source`, opened at `path`, holds exactly the tensors of `stored_tensors`."""
        self._path, self._source, self.recipe = path, source, recipe
        self._formats = recipe.formats(config)
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(self._formats.get(name, FLOAT32).name, shape)
            for name, shape in config.parameter_shapes().items()
        }

    def read(self, name: str) -> np.ndarray:
        """The values of one parameter, float32 in our shape.

        Raises:
            CheckpointError: the container is damaged, or a value or scale is NaN or infinite.
        """
        format = self._formats.get(name, FLOAT32)
        if not format.is_quantized:
            return self._read_floats(name)
        shape = self.tensors[name].shape
        scales = self._read_floats(name + SCALES)
        matrix = dequantize(self._source.read(name), scales, format, matrix_shape(shape)[1])
        return from_matrix(matrix, shape)

    def stored(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every tensor as it lies in the files, in our order, scales behind their numbers; raises as `read` does."""
        for name in self.tensors:
            if self._formats.get(name, FLOAT32).is_quantized:
                yield name, self._source.read(name)
                yield name + SCALES, self._read_floats(name + SCALES)
            else:
                yield name, self._read_floats(name)

    def _read_floats(self, name: str) -> np.ndarray:
        values = self._source.read(name)
        if not is_finite(values):
            raise CheckpointError(f"{self._path}: {name} holds NaN or infinity")
        return values
