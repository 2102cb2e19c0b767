"""Where kernels and graphs are tested: on a GPU where there is one, else interpreted and uncaptured on a CPU."""

import os
from typing import Any

import torch
from torch import Tensor

# What cuBLAS needs to give equal bits; read when it is loaded.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")


def moved(values: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """The same tensors on the device."""
    return {name: value if value is None else value.to(DEVICE) for name, value in values.items()}


def precise(value: Any) -> Any:
    """The same arguments with float64 in place of every floating type; tuples and named tuples are looked into."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, tuple):
        given = tuple(map(precise, value))
        return type(value)(*given) if hasattr(value, "_fields") else given
    return torch.float64 if isinstance(value, torch.dtype) else value
