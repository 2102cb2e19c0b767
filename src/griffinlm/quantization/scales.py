"""The scale of a block: where to clip it, chosen by the squared error."""

from typing import Any, NamedTuple

import numpy as np

from griffinlm.quantization.formats import Format

CLIP_FACTORS = tuple(1.0 - 0.05 * i for i in range(10))
"""With 4 bits; half as large a step gains 0.2% of the error for twice the time."""


class Grid(NamedTuple):
    """The whole numbers of a format, and the clips that are tried for it."""

    low: int
    high: int
    multipliers: tuple[float, ...]
    """What a block whose largest value is 1 may be multiplied by before it is rounded and clipped to low..high."""


def grid_of(format: Format) -> Grid:
    """The grid of a quantized format.

    With 4 bits clipping the largest values pays, so the largest lands on either end of the grid or beyond it. With 8
    bits it is not far enough from the others for that.
    """
    if format.is_channel:
        return Grid(-127, 127, (127.0,))
    low, high = -(2 ** (format.bits - 1)), 2 ** (format.bits - 1) - 1
    if format.bits == 8:
        return Grid(low, high, (low, high))
    return Grid(low, high, tuple(end / factor for factor in CLIP_FACTORS for end in (low, high)))


def fit(blocks: np.ndarray, grid: Grid, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Numbers q and scales s with the least sum of weights * (blocks - q s)^2 among the clips of the grid.

    For given numbers the best scale is s = <x, q> / <q, q>, which leaves the error |x|^2 - <x, q>^2 / <q, q>; the clip
    with the least error so wins.

    Args:
        blocks: float32 [..., size], each block with a scale of its own; overwritten.
        weights: of the shape of `blocks`, or one that broadcasts to it; 1 where None.

    Returns:
        Whole numbers, float32 [..., size], and scales, float32 [...]; a scale may be negative.
    """
    largest, smallest = blocks.max(axis=-1), blocks.min(axis=-1)
    peak = np.where(largest >= -smallest, largest, smallest)
    # Values below this cannot be divided by; such a block becomes zeros.
    peak[np.abs(peak) < np.finfo(np.float32).tiny] = 1.0
    # With a largest value of 1 no square overflows, and one multiplier serves all blocks.
    blocks /= peak[..., None]
    numbers, squares = np.empty_like(blocks), np.empty_like(blocks)
    weighted = blocks if weights is None else blocks * weights

    def round_all(multiplier: Any) -> tuple[np.ndarray, np.ndarray]:
        """Fills `numbers`; gives <x, q> and <q, q>, the latter never 0."""
        np.multiply(blocks, multiplier, out=numbers)
        np.rint(numbers, out=numbers)
        np.clip(numbers, grid.low, grid.high, out=numbers)
        qq = _inner(numbers, numbers if weights is None else np.multiply(numbers, weights, out=squares))
        return _inner(weighted, numbers), np.maximum(qq, np.finfo(np.float32).tiny)

    best = np.full(peak.shape, grid.multipliers[0], np.float32)
    if len(grid.multipliers) > 1:
        best_score = np.full(peak.shape, -1.0, np.float32)
        for multiplier in grid.multipliers:
            xq, qq = round_all(np.float32(multiplier))
            score = xq * xq / qq
            is_better = score > best_score
            best[is_better] = multiplier
            np.maximum(score, best_score, out=best_score)
    xq, qq = round_all(best[..., None])
    return numbers, xq / qq * peak


def _inner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sums of products over the last axis."""
    return np.einsum("...i,...i->...", a, b)
