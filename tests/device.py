"""Where kernels and graphs are tested: on a GPU where there is one, else interpreted and uncaptured on a CPU."""

import os

import torch
from torch import Tensor

# What cuBLAS needs to give equal bits; read when it is loaded.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")


def moved(values: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """The same tensors on the device."""
    return {name: value if value is None else value.to(DEVICE) for name, value in values.items()}
