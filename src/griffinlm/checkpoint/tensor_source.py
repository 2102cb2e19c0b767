"""What every container of tensors offers a checkpoint, and the element types that weights may have."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import ml_dtypes
import numpy as np

WEIGHT_TYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
WEIGHT_TYPES_TEXT = "float32, bfloat16 or float16"

_VALUES_A_CHECK = 1 << 20


class TensorInfo(NamedTuple):
    """What a container says of a tensor before it is read."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{list(self.shape)} {self.dtype}"


class ExpectedTensor(NamedTuple):
    """What a checkpoint must say of a tensor."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...] = tuple(WEIGHT_TYPES)

    def __str__(self) -> str:
        types = WEIGHT_TYPES_TEXT if self.dtypes == tuple(WEIGHT_TYPES) else " or ".join(self.dtypes)
        return f"{list(self.shape)} {types}"

    def fits(self, info: TensorInfo) -> bool:
        return info.shape == self.shape and info.dtype in self.dtypes


class StoredTensor(NamedTuple):
    """Where the bytes of a tensor lie in a file, in C order and little-endian."""

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * element_type(self.dtype).itemsize

    def read(self) -> np.ndarray:
        """The values, in memory."""
        values = np.fromfile(self.file, np.uint8, self.num_bytes, offset=self.offset)
        return values.view(element_type(self.dtype)).reshape(self.shape)

    def mapped(self) -> np.ndarray:
        """The values, read-only, in the pages of the file; a page comes into memory when it is touched."""
        values = np.memmap(self.file, np.uint8, "r", self.offset, self.num_bytes)
        return values.view(element_type(self.dtype)).reshape(self.shape)


class TensorSource(Protocol):
    """A container, open for reading by the names of its own format."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor of the container."""
        ...

    def read(self, name: str) -> np.ndarray:
        """The values of one tensor, in the type of the file.

        Raises:
            CheckpointError: the container is damaged.
        """
        ...


def num_bytes(info: TensorInfo) -> int:
    """Bytes that a tensor of numbers takes."""
    return math.prod(info.shape) * element_type(info.dtype).itemsize


def element_type(name: str) -> np.dtype:
    """The numpy type of a weight or of a quantized number."""
    return WEIGHT_TYPES[name] if name in WEIGHT_TYPES else np.dtype(name)


def is_finite(values: np.ndarray) -> bool:
    """Whether no value is NaN or infinite, in pieces, so that a large tensor needs no second copy of its size."""
    flat = values.reshape(-1)
    pieces = (flat[start : start + _VALUES_A_CHECK] for start in range(0, flat.size, _VALUES_A_CHECK))
    # ml_dtypes flags a signalling NaN of bfloat16 as an invalid operation.
    with np.errstate(invalid="ignore"):
        return all(bool(np.isfinite(piece).all()) for piece in pieces)


def raw_bytes(values: np.ndarray) -> memoryview:
    """The bytes of an array in C order; bfloat16 has no buffer of its own."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
