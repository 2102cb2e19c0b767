"""Numbers and scales: what is stored stands for the matrix, with the least error that its clips allow."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from griffinlm.quantization import Format, QuantizationError, Quantized, dequantize, quantize
from griffinlm.quantization.matrix import random_matrix
from griffinlm.quantization.recipe import from_matrix, row_energy, to_matrix

FORMATS = [Format(4, 16), Format(4, 32), Format(4, 128), Format(8, 32), Format(8, 128), Format(8)]
SHAPES = [(1, 1), (3, 31), (5, 32), (17, 130), (2, 600)]
LARGEST_ERROR = {4: 0.13, 8: 0.011}
"""Of normal values, relative; a little above that of the largest blocks."""

formats = st.sampled_from(FORMATS)


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def restored(stored: Quantized, format: Format, num_columns: int) -> np.ndarray:
    return dequantize(stored.numbers, stored.scales, format, num_columns)


def plain(matrix: np.ndarray, format: Format) -> np.ndarray:
    """The matrix by the textbook: each block's largest magnitude at the end of the grid, nothing clipped."""
    size, high = format.block_size or matrix.shape[1], 2 ** (format.bits - 1) - 1
    out = np.empty(matrix.shape)
    for start in range(0, matrix.shape[1], size):
        block = matrix[:, start : start + size].astype(np.float64)
        scale = np.abs(block).max(axis=1, keepdims=True) / high
        out[:, start : start + size] = np.rint(block / scale) * scale
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_arrays_are_those_of_the_format_and_stand_for_the_matrix(format: Format, shape: tuple[int, int]):
    matrix = normal(shape)
    stored = quantize(matrix, format)
    for array, spec in zip((stored.numbers, stored.scales), format.arrays(*shape), strict=True):
        assert (array.dtype.name, array.shape) == spec
    found = restored(stored, format, shape[1])
    assert found.dtype == np.float32
    error = np.linalg.norm(found - matrix) / np.linalg.norm(matrix)
    assert error < LARGEST_ERROR[format.bits]
    assert stored.relative_error == pytest.approx(error, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_the_error_is_below_that_of_plain_rounding_in_every_block(format: Format):
    matrix = normal((64, 256))
    found = restored(quantize(matrix, format), format, 256)

    def block_errors(values: np.ndarray) -> np.ndarray:
        return ((values - matrix.astype(np.float64)) ** 2).reshape(-1, format.block_size or 256).sum(axis=1)

    assert (block_errors(found) <= block_errors(plain(matrix, format)) * (1 + 1e-5)).all()


def test_clipping_pays_with_4_bits():
    matrix = normal((64, 1024))
    stored = quantize(matrix, Format(4, 128))
    textbook = np.linalg.norm(plain(matrix, Format(4, 128)) - matrix) / np.linalg.norm(matrix)
    assert stored.relative_error < 0.9 * textbook


def test_values_follow_the_written_formula():
    numbers = np.array([[[0x80, 0x1F]]], np.uint8).repeat(4, axis=-1)
    scales = np.array([[-0.5]], np.float32)
    row = dequantize(numbers, scales, Format(4, 16), 16)[0]
    # Four times 0x80 (low nibble 0, high nibble 8), then four times 0x1F (15, then 1).
    np.testing.assert_array_equal(row, [4, 0, 4, 0, 4, 0, 4, 0, -3.5, 3.5, -3.5, 3.5, -3.5, 3.5, -3.5, 3.5])
    row = dequantize(np.array([[[0, 255, *[128] * 14]]], np.uint8), scales, Format(8, 16), 3)[0]
    np.testing.assert_array_equal(row, [64, -63.5, 0])
    matrix = dequantize(np.array([[1, 127, -127], [-2, 0, 3]], np.int8), np.array([2, -1], np.float32), Format(8), 3)
    np.testing.assert_array_equal(matrix, [[2, 254, -254], [2, 0, -3]])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("num_columns", [33, 40, 63])
def test_what_the_last_block_lacks_is_zero(bits: int, num_columns: int):
    format = Format(bits, 32)
    drawn, _ = random_matrix((3, num_columns), format, 1.0, np.random.default_rng(0))
    for numbers in (quantize(normal((3, num_columns)), format).numbers, drawn):
        assert (numbers.dtype.name, numbers.shape) == format.arrays(3, num_columns)[0]
        whole = dequantize(numbers, np.ones((3, 2), np.float32), format, 64)
        assert not whole[:, num_columns:].any()
        assert whole[:, :num_columns].any()


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_a_grid_of_whole_numbers_is_stored_exactly(format: Format):
    low = -(2 ** (format.bits - 1)) + (1 if format.is_channel else 0)
    matrix = np.random.default_rng(0).integers(low + 1, -low, (6, 256)).astype(np.float32)
    matrix[:, :: format.block_size or 256] = -low if format.is_channel else low
    stored = quantize(matrix, format)
    np.testing.assert_allclose(restored(stored, format, 256), matrix, rtol=1e-6)
    assert stored.relative_error < 1e-6


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, 3e38, -3e38])
def test_blocks_at_the_ends_of_float32_stay_finite(format: Format, value: float):
    matrix = np.zeros((2, 256), np.float32)
    matrix[0, 7] = value
    stored = quantize(matrix, format)
    found = restored(stored, format, 256)
    assert np.isfinite(stored.scales).all()
    np.testing.assert_allclose(found, matrix, rtol=1e-5, atol=2e-38)


@given(format=formats, seed=st.integers(0, 2**32), rows=st.integers(1, 40), columns=st.integers(1, 300))
def test_rows_do_not_know_of_each_other(format: Format, seed: int, rows: int, columns: int):
    matrix = normal((rows, columns), seed)
    together = quantize(matrix, format)
    for row in {0, rows - 1}:
        alone = quantize(matrix[row : row + 1], format)
        np.testing.assert_array_equal(together.numbers[row : row + 1], alone.numbers)
        np.testing.assert_array_equal(together.scales[row : row + 1], alone.scales)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_types_are_quantized_as_their_float32_values(dtype: type):
    matrix = normal((5, 100)).astype(dtype)
    half, whole = quantize(matrix, Format(4, 32)), quantize(matrix.astype(np.float32), Format(4, 32))
    np.testing.assert_array_equal(half.numbers, whole.numbers)
    np.testing.assert_array_equal(half.scales, whole.scales)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_an_even_energy_changes_nothing(format: Format):
    matrix = normal((8, 256))
    np.testing.assert_array_equal(quantize(matrix, format, np.full(256, 7.0)).numbers, quantize(matrix, format).numbers)


def test_an_energy_lowers_the_error_that_it_weights():
    matrix = normal((64, 128))
    energy = np.random.default_rng(1).exponential(size=128) ** 3

    def weighted_error(stored: Quantized) -> float:
        return float((((restored(stored, Format(4, 128), 128) - matrix) ** 2) * energy).sum())

    aware = quantize(matrix, Format(4, 128), energy)
    assert weighted_error(aware) < 0.9 * weighted_error(quantize(matrix, Format(4, 128)))
    by_row = quantize(matrix, Format(4, 128), np.tile(energy, (64, 1)))
    np.testing.assert_array_equal(by_row.numbers, aware.numbers)


def test_inputs_that_were_never_active_keep_their_weights():
    energy = np.zeros(64)
    energy[0] = 1.0
    stored = quantize(normal((4, 64)), Format(4, 32), energy)
    assert stored.relative_error < 0.2
    assert quantize(normal((4, 64)), Format(4, 32), np.zeros(64)).relative_error < 0.13


@pytest.mark.parametrize(
    ("energy", "message"),
    [
        (np.ones(31), "shape"),
        (np.ones((2, 32)), "shape"),
        (np.full(32, np.nan), "NaN"),
        (-np.ones(32), "negative"),
        (np.full(32, np.inf), "infinity"),
    ],
)
def test_an_energy_that_does_not_fit_is_refused(energy: np.ndarray, message: str):
    with pytest.raises(QuantizationError, match=message):
        quantize(normal((3, 32)), Format(4, 32), energy)


def test_a_gate_comes_back_from_its_matrix_whose_rows_hold_one_output_each():
    gate = normal((3, 4, 5))
    matrix = to_matrix(gate)
    np.testing.assert_array_equal(matrix[1 * 5 + 2], gate[1, :, 2])
    np.testing.assert_array_equal(from_matrix(matrix, gate.shape), gate)
    energy = row_energy(np.arange(12.0), gate.shape)
    np.testing.assert_array_equal(energy[1 * 5 + 2], [4, 5, 6, 7])
    with pytest.raises(QuantizationError, match=r"it must be \[12\]"):
        row_energy(np.ones(4), gate.shape)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_random_matrices_have_the_deviation_asked_for_and_no_mean(format: Format):
    numbers, scales = random_matrix((200, 256), format, 0.25, np.random.default_rng(0))
    assert [(a.dtype.name, a.shape) for a in (numbers, scales)] == [tuple(s) for s in format.arrays(200, 256)]
    values = dequantize(numbers, scales, format, 256)
    assert values.std() == pytest.approx(0.25, rel=0.02)
    assert abs(values.mean()) < 0.01
    assert numbers.min() >= (-127 if format.is_channel else 0)


@pytest.mark.parametrize("format", [Format(4, 32), Format(8)], ids=lambda format: format.name)
def test_beside_its_result_quantizing_needs_little_memory(format: Format):
    matrix = np.zeros((1 << 14, 512), ml_dtypes.bfloat16)
    result = sum(np.dtype(spec.dtype).itemsize * int(np.prod(spec.shape)) for spec in format.arrays(*matrix.shape))
    tracemalloc.start()
    try:
        quantize(matrix, format)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < result + (8 << 20) < matrix.size * 4
