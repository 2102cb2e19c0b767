"""The one table of how far two computations of the same numbers may lie apart, and the measure of it.

The table stands in docs/numerics.md too; a test holds the two together.
"""

from typing import Any

import numpy as np

TOLERANCES: dict[tuple[str, str, str], float] = {
    ("rg_lru", "float64", "chunked"): 1e-14,
    ("rg_lru", "float32", "chunked"): 2e-6,
    ("rg_lru", "bfloat16", "chunked"): 8e-3,
    ("rg_lru gradient", "float64", "chunked"): 1e-13,
    ("rg_lru gradient", "float32", "chunked"): 5e-6,
    ("rg_lru gradient", "bfloat16", "chunked"): 8e-3,
    ("rg_lru drift", "float32", "chunked"): 1e-6,
    ("rg_lru drift", "bfloat16", "chunked"): 1e-2,
    ("rg_lru", "float32", "triton"): 2e-6,
    ("rg_lru", "bfloat16", "triton"): 8e-3,
    ("rg_lru gradient", "float32", "triton"): 5e-6,
    ("rg_lru gradient", "bfloat16", "triton"): 8e-3,
    ("short_conv", "float64", "reference"): 1e-14,
    ("short_conv", "float32", "reference"): 2e-6,
    ("short_conv", "bfloat16", "reference"): 1.6e-2,
    ("attention", "float64", "reference"): 1e-14,
    ("attention", "float32", "reference"): 2e-6,
    ("attention", "bfloat16", "reference"): 8e-3,
    ("attention", "float32", "triton"): 2e-6,
    ("attention", "bfloat16", "triton"): 8e-3,
    ("attention", "float32", "flex"): 2e-6,
    ("token step", "float32", "triton"): 2e-6,
    ("token step", "bfloat16", "triton"): 8e-3,
    ("attention gradient", "float64", "reference"): 1e-13,
    ("other kernels", "float64", "blocked"): 1e-13,
    ("other kernels", "float32", "blocked"): 5e-6,
    ("other kernels", "bfloat16", "blocked"): 1.6e-2,
    ("layer", "float32", "torch"): 5e-6,
    ("model", "float32", "torch"): 2e-5,
    ("model, narrow window", "float32", "torch"): 1e-4,
    ("model gradient", "float64", "torch"): 1e-6,
    ("model, adapter", "float32", "torch"): 2e-5,
    ("model", "float32", "onnx"): 2e-5,
    ("model, adapter", "float32", "onnx"): 1e-4,
    ("model, float16 window", "float32", "onnx"): 5e-4,
    ("window", "float16", "onnx"): 1e-3,
    ("model, int8 window", "float32", "onnx"): 2e-2,
    ("model, int8 or int4", "float32", "onnx"): 2e-2,
    ("model, rounded activations", "float32", "onnx"): 5e-2,
}
"""Largest allowed `disagreement`, by operator, type of the numbers, and what computed them."""


def disagreement(found: Any, expected: Any) -> float:
    """max|found - expected| / max(1, max|expected|) in float64; infinite where either holds a NaN or an infinity.

    Args:
        found, expected: torch tensors or numpy arrays of one shape.

    Raises:
        AssertionError: the shapes differ.
    """
    found, expected = _float64(found), _float64(expected)
    assert found.shape == expected.shape, f"shape {found.shape} instead of {expected.shape}"
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return float("inf")
    return float(np.abs(found - expected).max(initial=0.0) / max(1.0, np.abs(expected).max(initial=0.0)))


def assert_agree(found: Any, expected: Any, operator: str, dtype: Any, backend: str, what: str = "") -> None:
    """`disagreement` is within the table's tolerance; `dtype` may be a name or torch's or numpy's own."""
    name = str(dtype).removeprefix("torch.")
    allowed = TOLERANCES[operator, name, backend]
    distance = disagreement(found, expected)
    assert distance <= allowed, f"{what or operator} in {name}, {backend}: {distance:.3g} apart, allowed {allowed:.3g}"


def _float64(values: Any) -> np.ndarray:
    """Numpy has no bfloat16 of its own, so tensors go to float64 first."""
    return values.detach().double().cpu().numpy() if hasattr(values, "detach") else np.asarray(values, np.float64)
