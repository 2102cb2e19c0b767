"""Training under fake quantization: the forward pass computes with the weights that `griffin quantize` will store."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrize

from griffinlm.config import ModelConfig
from griffinlm.quantization import Format, Recipe
from griffinlm.quantization.matrix import VALUES_A_CHUNK
from griffinlm.quantization.recipe import matrix_shape
from griffinlm.quantization.scales import Grid, fit, grid_of
from griffinlm.train.errors import TrainError

WEIGHT, ORIGINAL = "weight", "parametrizations.weight.original"
"""What a parameter is called, and where torch's parametrizations keep it."""
VALUES_A_CHUNK_OF_A_GPU = 1 << 25


def fake_quantize(weight: Tensor, format: Format) -> Tensor:
    """dequantize(quantize(weight)), with the derivative of weight itself (straight-through, Bengio et al., 2013).

    On a CPU these are the bits of `quantization.quantize`. Elsewhere its steps are taken in torch, of its clips the one
    with the least squared error, then round, clip, and the best scale for the numbers; sums over a block may round
    otherwise there.

    Args:
        weight: float32, a matrix [N, K] or a gate [h, b_in, b_out]; a quantized format.
    """
    return _StraightThrough.apply(weight, format)  # pyright: ignore[reportReturnType]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, format: Format) -> Tensor:
        return _on_grid(weight, format)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _on_grid(weight: Tensor, format: Format) -> Tensor:
    num_rows, num_columns = matrix_shape(tuple(weight.shape))
    matrix = weight if weight.dim() == 2 else weight.transpose(1, 2).reshape(num_rows, num_columns)
    size = format.block_size or num_columns
    padded = nn.functional.pad(matrix, (0, -num_columns % size))
    blocks, grid = padded.reshape(-1, size), grid_of(format)
    if weight.device.type == "cpu":
        pieces = [_fit_by_numpy(piece, grid) for piece in blocks.split(max(VALUES_A_CHUNK // size, 1))]
    else:
        pieces = [_fit(piece, grid) for piece in blocks.split(max(VALUES_A_CHUNK_OF_A_GPU // size, 1))]
    values = torch.cat(pieces)
    values = values.reshape(num_rows, -1)[:, :num_columns]
    if weight.dim() == 3:
        num_blocks, inputs, outputs = weight.shape
        values = values.reshape(num_blocks, outputs, inputs).transpose(1, 2)
    return values.contiguous()


def _fit_by_numpy(blocks: Tensor, grid: Grid) -> Tensor:
    """q s of blocks [n, size], each with its own scale."""
    numbers, scales = fit(blocks.numpy().copy(), grid)
    numbers *= scales[:, None]
    return torch.from_numpy(numbers)


def _fit(blocks: Tensor, grid: Grid) -> Tensor:
    """q s of blocks [n, size], each with its own scale; the steps of `quantization.scales.fit`."""
    tiny = torch.finfo(torch.float32).tiny
    largest, smallest = blocks.amax(dim=1), blocks.amin(dim=1)
    peak = torch.where(largest >= -smallest, largest, smallest)
    peak = torch.where(peak.abs() < tiny, 1.0, peak)[:, None]
    values = blocks / peak

    def rounded(multiplier: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """q, <x, q> and <q, q>, the latter never 0."""
        numbers = (values * multiplier).round_().clamp_(grid.low, grid.high)
        return numbers, (values * numbers).sum(1, True), numbers.square().sum(1, True).clamp_min_(tiny)

    best = torch.full_like(peak, grid.multipliers[0])
    best_score = torch.full_like(peak, -1.0)
    for multiplier in grid.multipliers:
        _, xq, qq = rounded(multiplier)
        score = xq * xq / qq
        best = torch.where(score > best_score, multiplier, best)
        best_score = torch.maximum(score, best_score)
    numbers, xq, qq = rounded(best)
    return numbers * (xq / qq * peak)


class FakeQuantized(nn.Module):
    """A parametrization of torch's: whoever reads the weight finds it on the grid."""

    def __init__(self, format: Format) -> None:
        super().__init__()
        self.format = format

    def forward(self, weight: Tensor) -> Tensor:
        return fake_quantize(weight, self.format)


def put_on_grid(model: nn.Module, config: ModelConfig, recipe: Recipe) -> None:
    """Makes every matrix that `recipe` quantizes be read as its fake-quantized self; the parameters stay the same ones.

    State dicts keep their names, and hold the parameters as they are trained.

    Args:
        model: a `Griffin`, or a model of the transformers face, whose head has the embedding's weight.

    Raises:
        QuantizationError: a pattern of the recipe matches nothing.
        TrainError: the parameters are not float32, or each process has a part of them.
    """
    base = getattr(model, "base_model", model)
    for name, format in recipe.formats(config).items():
        if not format.is_quantized:
            continue
        parameter = base.get_parameter(name)
        if isinstance(parameter, DTensor):
            raise TrainError("weights are sharded; they are trained on an integer grid in one process only")
        if parameter.dtype != torch.float32:
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise TrainError(f"{name} is {dtype}; weights are trained on an integer grid in float32 only")
        for module in [m for m in model.modules() if m._parameters.get(WEIGHT) is parameter]:
            parametrize.register_parametrization(module, WEIGHT, FakeQuantized(format))
            module.register_state_dict_post_hook(_save_as_weight)
            module.register_load_state_dict_pre_hook(_load_from_weight)


def _save_as_weight(module: nn.Module, weights: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    if prefix + ORIGINAL in weights:
        weights[prefix + WEIGHT] = weights.pop(prefix + ORIGINAL)


def _load_from_weight(module: nn.Module, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    if parametrize.is_parametrized(module, WEIGHT) and prefix + WEIGHT in weights:
        weights[prefix + ORIGINAL] = weights.pop(prefix + WEIGHT)


def leave_on_grid(model: nn.Module) -> None:
    """Undoes `put_on_grid`; the parameters become what they were read as, so that quantizing them changes nothing."""
    with torch.no_grad():
        on_grid = {m: getattr(m, WEIGHT) for m in model.modules() if parametrize.is_parametrized(m, WEIGHT)}
        for module, values in on_grid.items():
            parametrize.remove_parametrizations(module, WEIGHT, leave_parametrized=False)
            module.get_parameter(WEIGHT).copy_(values)
