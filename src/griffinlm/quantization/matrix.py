"""A matrix to numbers and scales and back, a few rows at a time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from griffinlm.quantization.formats import Format, QuantizationError
from griffinlm.quantization.scales import fit, grid_of

VALUES_A_CHUNK = 1 << 16
"""Few enough that the buffers of a chunk stay in the processor's cache."""
FEWEST_ROWS = 16
SMALLEST_ENERGY = 1e-4
"""Share of the mean energy that an input counts with even if it was never active, so that its weights are not lost."""


@dataclass(frozen=True)
class Quantized:
    """A stored matrix; the arrays are those of `Format.arrays`."""

    numbers: np.ndarray
    scales: np.ndarray
    relative_error: float
    """||W - Q|| / ||W||, 0 for a matrix of zeros."""


def quantize(matrix: np.ndarray, format: Format, energy: np.ndarray | None = None) -> Quantized:
    """Stores a matrix [N, K] (out, in) of any float type with the least squared error over several clips of each block.

    Beside the result it needs memory for a few rows only.

    Args:
        energy: mean square of each input, [K], or [N, K] where the rows have inputs of their own; weights the error.

    Raises:
        QuantizationError: the energy has another shape, or a value in it is negative or not finite.
    """
    num_rows, num_columns = matrix.shape
    spec, scale_spec = format.arrays(num_rows, num_columns)
    numbers, scales = np.empty(spec.shape, spec.dtype), np.empty(scale_spec.shape, np.float32)
    weights = None if energy is None else _error_weights(energy, matrix.shape)
    grid, size = grid_of(format), format.block_size or num_columns
    error = norm = 0.0
    for rows in _chunks(num_rows, num_columns):
        values = matrix[rows].astype(np.float32)
        chunk_weights = None
        if weights is not None:
            chunk_weights = _blocks(weights[rows] if len(weights) == num_rows else weights, size)
        chosen, chunk_scales = fit(_blocks(values, size), grid, chunk_weights)
        scales[rows] = chunk_scales.reshape(scales[rows].shape)
        if format.is_channel:
            numbers[rows] = chosen.reshape(values.shape)
        else:
            numbers[rows] = _pack(chosen, format.bits)
        chosen *= chunk_scales[..., None]
        error += _squared(chosen.reshape(len(values), -1)[:, :num_columns] - values)
        norm += _squared(values)
    return Quantized(numbers, scales, (error / norm) ** 0.5 if norm else 0.0)


def dequantize(numbers: np.ndarray, scales: np.ndarray, format: Format, num_columns: int) -> np.ndarray:
    """The float32 matrix [N, num_columns] that the arrays of `Format.arrays` stand for."""
    values = np.empty((len(scales), num_columns), np.float32)
    for rows in _chunks(*values.shape):
        if format.is_channel:
            np.multiply(numbers[rows], scales[rows, None], out=values[rows], dtype=np.float32)
            continue
        blocks = _unpack(numbers[rows], format.bits)
        blocks *= scales[rows, :, None]
        values[rows] = blocks.reshape(len(blocks), -1)[:, :num_columns]
    return values


def random_matrix(
    shape: tuple[int, int], format: Format, deviation: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The arrays of a matrix [N, K] of uniform numbers and one scale for all blocks but for its sign.

    The values have mean 0 (by the signs, since the grid reaches one further down than up) and the deviation given.
    """
    spec, scale_spec = format.arrays(*shape)
    grid = grid_of(format)
    if format.is_channel:
        numbers = random.integers(grid.low, grid.high + 1, spec.shape, np.int8)
    else:
        numbers = np.frombuffer(random.bytes(math.prod(spec.shape)), np.uint8).reshape(spec.shape)
        numbers = _with_empty_tail(numbers, shape[1], format.bits)
    root_mean_square = math.sqrt(np.square(np.arange(grid.low, grid.high + 1, dtype=np.float64)).mean())
    signs = random.integers(0, 2, scale_spec.shape).astype(np.float32) * 2 - 1
    return numbers, signs * np.float32(deviation / root_mean_square)


def _with_empty_tail(packed: np.ndarray, num_columns: int, bits: int) -> np.ndarray:
    """Packed blocks [rows, blocks, bytes] with zeros in what the last block has beyond `num_columns`."""
    if packed[0].size * 8 == num_columns * bits:
        return packed
    last = _unpack(packed[:, -1], bits)
    last[:, num_columns - (packed.shape[1] - 1) * last.shape[1] :] = 0
    return np.concatenate([packed[:, :-1], _pack(last, bits)[:, None]], axis=1)


def _chunks(num_rows: int, num_columns: int) -> Iterator[slice]:
    step = max(FEWEST_ROWS, VALUES_A_CHUNK // num_columns)
    return (slice(start, start + step) for start in range(0, num_rows, step))


def _error_weights(energy: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The energy as float32 [1 or N, K] around 1."""
    if energy.shape not in (shape, shape[1:]):
        raise QuantizationError(
            f"the input energy has shape {list(energy.shape)}; it must be {list(shape[1:])} or {list(shape)}"
        )
    energy = energy.reshape(-1, shape[1]).astype(np.float64)
    if not np.isfinite(energy).all() or energy.min() < 0:
        raise QuantizationError("the input energy holds a negative value, NaN or infinity")
    mean = energy.mean() or 1.0
    return (energy / mean + SMALLEST_ENERGY).astype(np.float32)


def _blocks(rows: np.ndarray, size: int) -> np.ndarray:
    """A copy [rows, blocks, size] of [rows, columns], zeros at the end of the last block."""
    num_blocks = -(-rows.shape[1] // size)
    padded = np.zeros((len(rows), num_blocks * size), np.float32)
    padded[:, : rows.shape[1]] = rows
    return padded.reshape(len(rows), num_blocks, size)


def _pack(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Whole numbers [rows, blocks, size] as unsigned ones in uint8 [rows, blocks, size * bits / 8]."""
    unsigned = (numbers + 2.0 ** (bits - 1)).astype(np.uint8)
    return unsigned if bits == 8 else unsigned[..., ::2] | unsigned[..., 1::2] << 4


def _unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """Undoes `_pack`; float32."""
    if bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return packed.astype(np.float32) - np.float32(2 ** (bits - 1))


def _squared(values: np.ndarray) -> float:
    """The sum of squares, in float64: a square of a large weight may be past the largest float32."""
    flat = values.reshape(-1).astype(np.float64)
    return float(flat @ flat)
