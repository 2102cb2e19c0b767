"""The matrix of low rank that is nearest to a given one."""

import math

import numpy as np

LARGEST_EXACT = 1024
"""Matrices with no more rows or columns are taken apart in full, which takes a second or less."""
SMALLEST_SHARE = 4
"""So are those of which more than this part of the singular values is wanted."""
NUM_SPARE_VECTORS = 16
NUM_ITERATIONS = 4
"""Each multiplies the distance between two singular values by their ratio, squared."""


def nearest_of_rank(matrix: np.ndarray, rank: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """up = U S and down = V^T of the `rank` largest singular values: up down is nearest to the matrix in squared error.

    A large matrix of which few are wanted is projected on a random subspace, refined by iterations (Halko, Martinsson
    and Tropp, 2011, algorithms 4.4 and 5.1).

    Args:
        matrix: float32 [..., N, K], each [N, K] by itself.
        rank: at most N and K.

    Returns:
        up [..., N, rank] and down [..., rank, K], float32.

    Raises:
        numpy.linalg.LinAlgError: the iteration does not converge.
    """
    smallest = min(matrix.shape[-2:])
    if smallest <= LARGEST_EXACT or rank * SMALLEST_SHARE > smallest:
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    elif matrix.ndim > 2:
        pairs = [nearest_of_rank(one, rank, random) for one in matrix]
        return np.stack([up for up, _ in pairs]), np.stack([down for _, down in pairs])
    else:
        basis = _range_of(matrix, min(rank + NUM_SPARE_VECTORS, smallest), random)
        u, s, vt = np.linalg.svd(basis.T @ matrix, full_matrices=False)
        u = basis @ u
    return u[..., :rank] * s[..., None, :rank], vt[..., :rank, :]


def _range_of(matrix: np.ndarray, num_vectors: int, random: np.random.Generator) -> np.ndarray:
    """[N, num_vectors], orthonormal, near the singular vectors of the largest values of a matrix [N, K]."""
    start = random.standard_normal((matrix.shape[1], num_vectors), np.float32) / math.sqrt(num_vectors)
    basis, _ = np.linalg.qr(matrix @ start)
    for _ in range(NUM_ITERATIONS):
        other, _ = np.linalg.qr(matrix.T @ basis)
        basis, _ = np.linalg.qr(matrix @ other)
    return basis
