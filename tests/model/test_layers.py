"""Every layer = its formula written out."""

import math

import pytest
import torch
from tolerances import assert_agree
from torch import Tensor

from griffinlm.config import AttentionConfig, ModelConfig
from griffinlm.kernels.rotation.in_place import rotate
from griffinlm.model.layers import BlockDiagonalLinear, GatedMLP, RMSNorm, rotation


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomize(module: torch.nn.Module) -> None:
    for index, parameter in enumerate(module.parameters()):
        parameter.data = normal(*parameter.shape, seed=index + 1)


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert_agree(found, expected, "layer", "float32", "torch")


def test_norm_equals_its_formula_with_one_plus_scale():
    norm = RMSNorm(7, 1e-2)
    randomize(norm)
    x = normal(2, 3, 7)
    expected = x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-2) * (1 + norm.scale)
    assert_same(norm(x), expected)


def test_norm_of_bfloat16_is_computed_in_float32():
    norm = RMSNorm(64, 1e-6)
    randomize(norm)
    norm = norm.to(torch.bfloat16)
    x = normal(5, 1, 64).to(torch.bfloat16)
    scale = norm.scale.float()
    expected = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6) * (1 + scale)
    assert norm(x).dtype == torch.bfloat16
    assert torch.equal(norm(x), expected.to(torch.bfloat16))


def test_norm_of_zeros_is_zero():
    assert not RMSNorm(4, 1e-6)(torch.zeros(1, 1, 4)).any()


@pytest.mark.parametrize("preset", ["tiny-griffin", "tiny-gemma"])
def test_gated_mlp_equals_its_formula_with_the_tanh_gelu(preset):
    config = ModelConfig.preset(preset)
    mlp = GatedMLP(config)
    randomize(mlp)
    x = normal(2, 3, config.width)

    def linear(layer: torch.nn.Linear, x: Tensor) -> Tensor:
        out = x @ layer.weight.T
        assert (layer.bias is not None) == config.use_bias
        return out if layer.bias is None else out + layer.bias

    gate = linear(mlp.gate, x)
    gelu = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    assert_same(mlp(x), linear(mlp.down, gelu * linear(mlp.up, x)))


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 6])
def test_block_diagonal_linear_equals_the_dense_matrix(num_blocks):
    layer = BlockDiagonalLinear(6, num_blocks)
    randomize(layer)
    x = normal(2, 3, 6)
    assert_same(layer(x), x @ torch.block_diag(*layer.weight) + layer.bias.flatten())


def attention_config(rope_fraction: float) -> AttentionConfig:
    return AttentionConfig(num_heads=3, head_size=8, rope_fraction=rope_fraction, rope_wavelength=100.0)


@pytest.mark.parametrize(("rope_fraction", "half"), [(0.0, 0), (0.5, 2), (1.0, 4)])
def test_rotation_turns_channel_i_with_channel_i_plus_half_and_leaves_the_rest(rope_fraction, half):
    config = attention_config(rope_fraction)
    positions = torch.tensor([[0, 1, 2, 50], [7, 8, 0, 1]])
    x = normal(2, 4, 3, 8)
    found = rotate(x, *rotation(positions, config))
    expected = x.clone()
    for i in range(half):
        angle = positions[..., None] * 100.0 ** (-i / half)
        first, second = x[..., i], x[..., i + half]
        expected[..., i] = first * torch.cos(angle) - second * torch.sin(angle)
        expected[..., i + half] = second * torch.cos(angle) + first * torch.sin(angle)
    assert_same(found, expected)
    assert torch.equal(found[0, 0], x[0, 0])
    assert torch.equal(found[..., 2 * half :], x[..., 2 * half :])


def test_rotated_products_depend_on_the_distance_only():
    config = attention_config(1.0)
    query, key = normal(1, 1, 1, 8), normal(1, 1, 1, 8, seed=1)

    def product(query_position: int, key_position: int) -> Tensor:
        turned = [
            rotate(x, *rotation(torch.tensor([[p]]), config)) for x, p in ((query, query_position), (key, key_position))
        ]
        return (turned[0] * turned[1]).sum()

    for shift in (1, 10, 60):
        assert_same(product(5 + shift, 2 + shift), product(5, 2))
    assert (product(5, 2) - product(5, 3)).abs() > 1e-3


def test_angles_are_float32_whatever_the_precision_of_the_model():
    cos, sin = rotation(torch.tensor([[2047]]), attention_config(1.0))
    assert cos.dtype == sin.dtype == torch.float32
    assert rotate(normal(1, 1, 1, 8).to(torch.bfloat16), cos, sin).dtype == torch.bfloat16
