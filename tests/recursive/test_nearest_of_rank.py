"""Matrices of low rank: as near as the singular values allow, exactly and by random projection, block by block."""

import numpy as np
import pytest

from griffinlm.recursive import low_rank
from griffinlm.recursive.low_rank import nearest_of_rank


def matrix(*shape: int, decay: float = 0.0) -> np.ndarray:
    """Singular values that fall like i^-decay."""
    random = np.random.default_rng(0)
    u, s, vt = np.linalg.svd(random.standard_normal(shape), full_matrices=False)
    s = s[..., :1] * np.arange(1, s.shape[-1] + 1) ** -decay
    return ((u * s[..., None, :]) @ vt).astype(np.float32)


def error(found: tuple[np.ndarray, np.ndarray], expected: np.ndarray) -> float:
    up, down = found
    return float(np.linalg.norm(expected.astype(np.float64) - up.astype(np.float64) @ down))


def least_error(values: np.ndarray, rank: int) -> float:
    singular = np.linalg.svd(values.astype(np.float64), compute_uv=False)
    return float(np.sqrt((singular[..., rank:] ** 2).sum()))


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (3, 8, 8)])
@pytest.mark.parametrize("rank", [1, 5, 8])
def test_the_error_is_the_least_that_the_rank_allows(shape, rank):
    values = matrix(*shape, decay=0.5)
    found = nearest_of_rank(values, rank, np.random.default_rng(1))
    assert found[0].shape == (*shape[:-1], rank)
    assert found[1].shape == (*shape[:-2], rank, shape[-1])
    assert {factor.dtype.name for factor in found} == {"float32"}
    assert error(found, values) == pytest.approx(least_error(values, rank), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
def test_a_full_rank_gives_the_matrix_back(shape):
    values = matrix(*shape)
    assert error(nearest_of_rank(values, 20, np.random.default_rng(1)), values) < 1e-5 * np.linalg.norm(values)


@pytest.mark.parametrize("shape", [(150, 220), (220, 150), (2, 150, 150)])
@pytest.mark.parametrize("decay", [0.1, 1.0])
def test_a_random_projection_is_within_a_hundredth_of_the_least_error(shape, decay, monkeypatch):
    """Down to singular values that hardly fall, as those of a difference of trained matrices."""
    monkeypatch.setattr(low_rank, "LARGEST_EXACT", 100)
    values = matrix(*shape, decay=decay)
    found = nearest_of_rank(values, 10, np.random.default_rng(1))
    least = least_error(values, 10)
    assert least * (1 - 1e-4) <= error(found, values) <= 1.01 * least
    again = nearest_of_rank(values, 10, np.random.default_rng(1))
    assert all(np.array_equal(one, other) for one, other in zip(found, again, strict=True))
