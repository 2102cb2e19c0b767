"""Rotary position embedding of a head's first channels: the definition that faster forms are compared with."""

import torch
from torch import Tensor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on the first channels of each head: channel i is paired with i + rotated_size / 2.

        out_i = x_i cos_i - x_{i+half} sin_i
        out_{i+half} = x_{i+half} cos_i + x_i sin_i

    Args:
        x: [B, T, N, H]. cos, sin: [B, T, 1, rotated_size / 2].
    """
    half = cos.shape[-1]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
