"""Writing a quantized checkpoint: from another checkpoint, or with random weights."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from griffinlm.checkpoint.checkpoint import Checkpoint, WeightsDigest, file_checksum
from griffinlm.checkpoint.config_file import CONFIG_FILE, our_fields
from griffinlm.checkpoint.errors import CheckpointError
from griffinlm.checkpoint.exits import copy_exits
from griffinlm.checkpoint.initial import initial_tensor, initial_variance
from griffinlm.checkpoint.new_directory import new_directory, require_free
from griffinlm.checkpoint.quantization_record import Method, Quantization
from griffinlm.checkpoint.quantized import SCALES
from griffinlm.checkpoint.store import write_safetensors
from griffinlm.checkpoint.tokenizer_files import copy_tokenizer
from griffinlm.config import ModelConfig, is_matrix
from griffinlm.progress import progress
from griffinlm.quantization import FLOAT32, Format, QuantizationError, Quantized, Recipe, quantize
from griffinlm.quantization.matrix import random_matrix
from griffinlm.quantization.recipe import matrix_shape, row_energy, to_matrix

QUANTIZED_SHARD_BYTES = 512 << 20
Tensors = Iterator[tuple[str, np.ndarray]]


class LayerReport(NamedTuple):
    """What became of one matrix."""

    parameter: str
    format: str
    num_bytes: int
    """As stored, scales included."""
    relative_error: float
    """||W - Q|| / ||W||."""


def write_quantized(
    checkpoint: Checkpoint,
    recipe: Recipe,
    destination: Path | str,
    input_energy: Mapping[str, np.ndarray] | None = None,
    shard_bytes: int = QUANTIZED_SHARD_BYTES,
) -> list[LayerReport]:
    """Writes a new directory with the weights quantized by `recipe` and the tokenizer's files; whole, or not at all.

    Parameters go through memory one by one; `shard_bytes` of the result, or one larger tensor, are held.

    Args:
        input_energy: by name of every quantized matrix, the mean square of each of its inputs, [K], for a gate
            [h * b_in]; the error of the weights is weighted by it, but for low-rank terms, which need none.

    Returns:
        A report of every matrix, those that stay float32 included, in our order.

    Raises:
        CheckpointError: as `check_quantizable`, or the checkpoint is damaged, or the system refuses to write.
        QuantizationError: a pattern of the recipe matches nothing, or an input energy is missing or does not fit.
    """
    check_quantizable(checkpoint, recipe, destination)
    formats = recipe.formats(checkpoint.config)
    _check_names(formats, input_energy)
    digest = WeightsDigest()
    reports: list[LayerReport] = []

    def tensors() -> Tensors:
        for name, values in progress(checkpoint.tensors(), "quantizing", len(checkpoint.config.parameter_shapes())):
            digest.add(name, values)
            format = formats.get(name, FLOAT32)
            if not format.is_quantized:
                if name in formats:
                    reports.append(LayerReport(name, format.name, 4 * values.size, 0.0))
                yield name, values.astype(np.float32)
                continue
            stored = _quantized(name, values, format, input_energy)
            del values  # the writer may hold what is stored for long
            num_bytes = stored.numbers.nbytes + stored.scales.nbytes
            reports.append(LayerReport(name, format.name, num_bytes, stored.relative_error))
            yield name, stored.numbers
            yield name + SCALES, stored.scales

    method: Method = "clip" if input_energy is None else "activation"
    _write(checkpoint.config, recipe, tensors(), method, digest.hexdigest, Path(destination), checkpoint, shard_bytes)
    return reports


def check_quantizable(checkpoint: Checkpoint, recipe: Recipe, destination: Path | str) -> None:
    """Refuses what `write_quantized` would, before any work for it.

    Raises:
        CheckpointError: the checkpoint is quantized already, or the destination is not free.
        QuantizationError: a pattern of the recipe matches nothing.
    """
    if checkpoint.quantization is not None:
        raise CheckpointError(
            f"{checkpoint.path} is quantized already ({checkpoint.quantization.recipe.default.name})",
            hint="quantize the checkpoint that it was made from",
        )
    recipe.formats(checkpoint.config)
    require_free(Path(destination))


def write_random_quantized(config: ModelConfig, recipe: Recipe, destination: Path | str, seed: int) -> None:
    """Writes a quantized checkpoint of random weights, without making the weights it stands for.

    The stored numbers are uniform, the scales such that every matrix has the variance of its initial values; all other
    parameters have their initial values.

    Raises:
        CheckpointError: the destination is not free, or the system refuses to write.
        QuantizationError: a pattern of the recipe matches nothing.
    """
    formats = recipe.formats(config)

    def tensors() -> Tensors:
        for index, (name, shape) in enumerate(progress(config.parameter_shapes().items(), "drawing")):
            random = np.random.default_rng([seed, index])
            format = formats.get(name, FLOAT32)
            if not format.is_quantized:
                yield name, initial_tensor(config, name, shape, random)
                continue
            deviation = math.sqrt(initial_variance(config, name, shape))
            numbers, scales = random_matrix(matrix_shape(shape), format, deviation, random)
            yield name, numbers
            yield name + SCALES, scales

    _write(config, recipe, tensors(), "random", lambda: None, Path(destination), None, QUANTIZED_SHARD_BYTES)


def _check_names(formats: Mapping[str, Format], input_energy: Mapping[str, np.ndarray] | None) -> None:
    quantized = [name for name, format in formats.items() if format.is_quantized and is_matrix(name)]
    missing = [name for name in quantized if input_energy is not None and name not in input_energy]
    if missing:
        raise QuantizationError(f"there is no input energy for {len(missing)} parameters, the first is {missing[0]}")


def _quantized(
    name: str, values: np.ndarray, format: Format, input_energy: Mapping[str, np.ndarray] | None
) -> Quantized:
    if input_energy is None or not is_matrix(name):
        return quantize(to_matrix(values), format)
    try:
        return quantize(to_matrix(values), format, row_energy(input_energy[name], values.shape))
    except QuantizationError as error:
        raise QuantizationError(f"{name}: {error}", error.hint) from error


def _write(
    config: ModelConfig,
    recipe: Recipe,
    tensors: Tensors,
    method: Method,
    source_digest: Callable[[], str | None],
    destination: Path,
    source: Checkpoint | None,
    shard_bytes: int,
) -> None:
    """Writes the directory, with tokenizer and exits of the source; the digest is asked for behind the tensors."""
    with new_directory(destination) as directory:
        write_safetensors(directory, tensors, {"format": "pt"}, shard_bytes)
        files = sorted(directory.glob("*.safetensors"))
        quantization = Quantization(recipe, method, source_digest(), {file.name: file_checksum(file) for file in files})
        if source is not None and source.tokenizer_directory is not None:
            copy_tokenizer(source.tokenizer_directory, directory)
        if source is not None:
            copy_exits(source.path, directory)
        (directory / CONFIG_FILE).write_text(json.dumps(our_fields(config, quantization), indent=2) + "\n")
