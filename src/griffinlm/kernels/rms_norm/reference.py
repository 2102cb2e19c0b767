"""Root mean square normalisation: the definition that faster forms are compared with."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    """y = x / sqrt(mean(x^2) + epsilon) * (1 + scale), computed in float32 (float64 if x is), in the type of x.

    Args:
        x: [..., D]. scale: [D].
    """
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.nn.functional.rms_norm(precise, scale.shape, 1.0 + scale.to(precise.dtype), epsilon).to(x.dtype)
