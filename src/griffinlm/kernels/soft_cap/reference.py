"""The soft cap of logits: the definition that faster forms are compared with."""

import torch
from torch import Tensor


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap), in float32 (float64 if x is)."""
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.tanh(precise / cap) * cap
