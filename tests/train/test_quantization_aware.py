"""Training on an integer grid: the numbers of `griffin quantize`, the derivative of the weight itself."""

import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import random_model
from tolerances import TOLERANCES, assert_agree, disagreement

import griffinlm
from griffinlm.checkpoint import open_checkpoint, write_checkpoint, write_quantized
from griffinlm.config import is_matrix
from griffinlm.model import Griffin
from griffinlm.model.state import to_array
from griffinlm.quantization import RECIPES, Format, QuantizationError, Recipe, dequantize, quantize, recipe_of
from griffinlm.quantization.recipe import from_matrix, matrix_shape, to_matrix
from griffinlm.train import quantization_aware
from griffinlm.train.config import OptimizerConfig
from griffinlm.train.errors import TrainError
from griffinlm.train.optimizer import build_optimizer
from griffinlm.train.pretrain import pretrain
from griffinlm.train.quantization_aware import fake_quantize, leave_on_grid, put_on_grid

FORMATS = ("int4-block16", "int4-block32", "int4-block128", "int8-block32", "int8-channel")
SHAPES = ((6, 40), (33, 128), (5, 77), (3, 8, 24), (2, 24, 24))
CONFIG = griffinlm.ModelConfig.preset("tiny-griffin")


def stored(weight: np.ndarray, format: Format) -> np.ndarray:
    """What a quantized checkpoint gives back of a parameter."""
    matrix = quantize(to_matrix(weight), format)
    values = dequantize(matrix.numbers, matrix.scales, format, matrix_shape(weight.shape)[1])
    return from_matrix(values, weight.shape)


def rounding(format: Format, shape: tuple[int, ...]) -> float:
    """By what share a scale may differ when its float32 sums over a block are taken in another order."""
    return (format.block_size or shape[-1]) * 2.0**-24


def error(weight: np.ndarray, values: np.ndarray) -> float:
    return float(np.linalg.norm(weight.astype(np.float64) - values))


@given(st.sampled_from(FORMATS), st.sampled_from(SHAPES), st.integers(0, 2**16), st.sampled_from([1e-6, 1.0, 1e6]))
def test_fake_quantized_equals_dequantized_to_the_bit(name: str, shape: tuple[int, ...], seed: int, size: float):
    format = Format.parse(name)
    weight = (size * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)
    before = weight.copy()
    found = fake_quantize(torch.from_numpy(weight), format).numpy()
    assert np.array_equal(found, stored(weight, format))
    assert np.array_equal(weight, before)


@given(st.sampled_from(FORMATS), st.sampled_from(SHAPES), st.integers(0, 2**16), st.sampled_from([1e-6, 1.0, 1e6]))
def test_fake_quantized_off_the_cpu_equals_dequantized(name: str, shape: tuple[int, ...], seed: int, size: float):
    format = Format.parse(name)
    weight = (size * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)
    with mock.patch.object(quantization_aware, "_fit_by_numpy", quantization_aware._fit):
        found = fake_quantize(torch.from_numpy(weight), format).numpy()
    expected = stored(weight, format)
    is_equal = np.abs(found - expected) <= rounding(format, shape) * np.abs(weight).max()
    # Two clips of a block may be equally good as far as float32 sums can tell: then values differ, their errors do not.
    assert is_equal.mean() > 0.9 or weight.size < 1024
    for row, row_found, row_expected in zip(weight, found, expected, strict=True):
        most = 2 * rounding(format, shape) * error(row, 0 * row) ** 2
        assert abs(error(row, row_found) ** 2 - error(row, row_expected) ** 2) <= most


@given(st.sampled_from(FORMATS), st.sampled_from(SHAPES), st.integers(0, 2**16))
def test_quantizing_what_was_trained_on_changes_nothing(name: str, shape: tuple[int, ...], seed: int):
    format = Format.parse(name)
    weight = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))
    trained = fake_quantize(weight, format).numpy()
    assert np.abs(stored(trained, format) - trained).max() <= rounding(format, shape) * np.abs(trained).max()


def test_zeros_stay_zeros_and_the_largest_weights_finite():
    for values in (torch.zeros(4, 32), torch.full((4, 32), 3e38)):
        found = fake_quantize(values, Format(4, 32))
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found, values)


def test_gradient_passes_straight_through():
    weight = torch.randn(5, 32, requires_grad=True)
    given = torch.randn(5, 32)
    (fake_quantize(weight, Format(4, 32)) * given).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, given)


@pytest.mark.parametrize("recipe", ["int4", "int8"])
def test_fake_quantized_logits_equal_those_of_the_quantized_model(recipe: str, tmp_path: Path):
    model = random_model(CONFIG, 3)
    tokens = torch.randint(0, CONFIG.vocab_size, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain, _ = model(tokens)
        put_on_grid(model, CONFIG, recipe_of(recipe))
        expected, _ = model(tokens)
        leave_on_grid(model)
        torch.testing.assert_close(model(tokens)[0], expected)
    assert disagreement(plain, expected) > (0.1 if recipe == "int4" else 0.005), "the grid changes nothing"
    tensors = ((name, to_array(values)) for name, values in model.named_parameters())
    write_checkpoint(CONFIG, tensors, tmp_path / "trained", "griffinlm")
    write_quantized(open_checkpoint(tmp_path / "trained"), RECIPES[recipe], tmp_path / "quantized")
    by_torch, _ = griffinlm.load(tmp_path / "quantized", engine="torch").forward(tokens)
    assert_agree(by_torch, expected, "model", "float32", "torch")
    by_onnx, _ = griffinlm.load(tmp_path / "quantized", engine="onnx").forward(tokens)
    assert disagreement(by_onnx, expected) <= TOLERANCES["model, rounded activations", "float32", "onnx"]


@pytest.mark.parametrize("recipe", ["int4", "int8"])
def test_every_weight_that_is_read_has_the_bits_that_are_served(recipe: str, tmp_path: Path):
    model = random_model(CONFIG, 3)
    tensors = ((name, to_array(values)) for name, values in model.named_parameters())
    write_checkpoint(CONFIG, tensors, tmp_path / "plain", "griffinlm")
    write_quantized(open_checkpoint(tmp_path / "plain"), RECIPES[recipe], tmp_path / "quantized")
    served = open_checkpoint(tmp_path / "quantized")
    put_on_grid(model, CONFIG, RECIPES[recipe])
    for name in RECIPES[recipe].formats(CONFIG):
        module = model.get_submodule(name.removesuffix(".weight"))
        assert np.array_equal(module.weight.detach().numpy(), served.tensor(name)), name


def test_every_matrix_is_read_from_the_grid_and_its_parameter_is_what_an_optimizer_moves():
    model = random_model(CONFIG, 0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    kept = dict(model.named_parameters())
    put_on_grid(model, CONFIG, RECIPES["int4"])
    optimizer = build_optimizer(model.named_parameters(), OptimizerConfig(learning_rate=1e-2))
    logits, _ = model(torch.arange(20)[None])
    assert logits is not None
    logits.square().sum().backward()
    optimizer.step()
    for name, parameter in kept.items():
        assert not torch.equal(parameter, before[name]), f"{name} was not trained"
    latent = {name: parameter.detach().clone() for name, parameter in kept.items()}
    leave_on_grid(model)
    named = dict(model.named_parameters())
    assert named.keys() == CONFIG.parameter_shapes().keys()
    for name, parameter in named.items():
        assert parameter is kept[name]
        assert torch.equal(parameter, latent[name]) != is_matrix(name), name


def test_unknown_patterns_and_other_types_are_refused():
    with pytest.raises(QuantizationError, match="matches no matrix"):
        put_on_grid(Griffin(CONFIG), CONFIG, Recipe(Format(4, 32), (("no.such", Format(8, 32)),)))
    with pytest.raises(TrainError, match="bfloat16"):
        put_on_grid(Griffin(CONFIG).bfloat16(), CONFIG, RECIPES["int4"])


def test_a_run_under_fake_quantization_resumes_to_the_bit_and_ends_on_the_grid(run, tmp_path: Path):
    whole = pretrain(run("output=whole", "quantization_aware=int4"))
    cut = run("output=cut", "quantization_aware=int4")
    (cut.output / "checkpoints").mkdir(parents=True)
    shutil.copytree(whole.model.parent / "checkpoints/step-4", cut.output / "checkpoints/step-4")
    resumed = pretrain(cut)
    weights, others = (dict(open_checkpoint(one.model).tensors()) for one in (whole, resumed))
    formats = RECIPES["int4"].formats(open_checkpoint(whole.model).config)
    for name, values in weights.items():
        assert np.array_equal(values, others[name]), name
        if name in formats:
            again = stored(values, formats[name])
            most = rounding(formats[name], values.shape) * np.abs(values).max()
            assert np.abs(again - values).max() <= most, name


def test_a_run_with_another_grid_does_not_go_on(run):
    pretrain(run("quantization_aware=int4"))
    config = run("quantization_aware=int8")
    shutil.rmtree(config.output / "model")
    with pytest.raises(TrainError, match="another quantization_aware"):
        pretrain(config)
