"""The gated GELU: the definition that faster forms are compared with."""

import torch
from torch import Tensor


def gated_gelu(gate: Tensor, x: Tensor) -> Tensor:
    """gelu(gate) * x, GELU by its tanh approximation; all of one shape."""
    return torch.nn.functional.gelu(gate, approximate="tanh") * x
