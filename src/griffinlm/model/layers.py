"""The layers of the Griffin family. Parameter names are the names of `ModelConfig.parameter_shapes()`."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from griffinlm.config import AttentionConfig, ModelConfig, RecurrentConfig
from griffinlm.kernels.block_diagonal.strided import block_diagonal
from griffinlm.kernels.gated_gelu.blocked import gated_gelu
from griffinlm.kernels.linear_scan.operator import rg_lru
from griffinlm.kernels.rms_norm.blocked import rms_norm
from griffinlm.kernels.short_conv.blocked import short_conv
from griffinlm.model.low_rank import RowTerms, product


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + epsilon) * (1 + scale), computed in float32."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.scale, self.epsilon)


class GatedMLP(nn.Module):
    """down(gelu(gate(x)) * up(x)), GELU by its tanh approximation."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.mlp_hidden, bias=config.use_bias)
        self.up = nn.Linear(config.width, config.mlp_hidden, bias=config.use_bias)
        self.down = nn.Linear(config.mlp_hidden, config.width, bias=config.use_bias)

    def forward(self, x: Tensor, low_rank: Sequence[RowTerms] = ()) -> Tensor:
        gated = gated_gelu(product(self.gate, x, low_rank), product(self.up, x, low_rank))
        return product(self.down, gated, low_rank)


class BlockDiagonalLinear(nn.Module):
    """Each of `num_blocks` slices of the channels through its own square matrix: u_i @ weight[i] + bias[i]."""

    def __init__(self, width: int, num_blocks: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_blocks, width // num_blocks, width // num_blocks))
        self.bias = nn.Parameter(torch.zeros(num_blocks, width // num_blocks))

    def forward(self, x: Tensor) -> Tensor:
        return block_diagonal(x, self.weight, self.bias)


class RgLru(nn.Module):
    """The gates of the RG-LRU in front of its scan; see `kernels.linear_scan.reference.rg_lru`."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.input_gate = BlockDiagonalLinear(config.width, config.num_gate_blocks)
        self.recurrence_gate = BlockDiagonalLinear(config.width, config.num_gate_blocks)
        self.a_param = nn.Parameter(torch.zeros(config.width))

    def gates(self, x: Tensor, low_rank: Sequence[RowTerms] = ()) -> tuple[Tensor, Tensor]:
        """The input gate and the recurrence gate, before their sigmoid."""
        return product(self.input_gate, x, low_rank), product(self.recurrence_gate, x, low_rank)

    def forward(
        self, x: Tensor, gates: Sequence[Tensor], reset: Tensor, initial: Tensor, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The rest, which reads no matrix."""
        input_gate, recurrence_gate = gates
        return rg_lru(x, input_gate, recurrence_gate, self.a_param, reset, initial, lengths)


class ShortConv(nn.Module):
    """Causal depthwise convolution; see `kernels.short_conv.reference.short_conv`."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.num_conv_taps, config.width))
        self.bias = nn.Parameter(torch.zeros(config.width))

    def forward(
        self, x: Tensor, positions: Tensor, tail: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return short_conv(x, self.weight, self.bias, positions, tail, lengths)


def rotation(positions: Tensor, config: AttentionConfig) -> tuple[Tensor, Tensor]:
    """cos and sin [B, T, 1, rotated_size / 2] of position * wavelength^(-2i / rotated_size), in float32."""
    angle = positions[..., None, None].float() * rope_frequencies(config, positions.device)
    return torch.cos(angle), torch.sin(angle)


def rope_frequencies(config: AttentionConfig, device: torch.device) -> Tensor:
    """float32 [rotated_size / 2], wavelength^(-2i / rotated_size)."""
    half = config.rotated_size // 2
    exponent = torch.arange(half, dtype=torch.float32, device=device) / max(half, 1)
    return config.rope_wavelength**-exponent
