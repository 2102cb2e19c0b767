"""The checkpoint that a benchmark runs on: a model's own weights, or random ones of a preset, kept on disk."""

import hashlib
import json
import math
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from griffinlm.checkpoint import (
    Checkpoint,
    CheckpointError,
    initial_tensors,
    open_checkpoint,
    quantized_copy,
    write_checkpoint,
    write_random_quantized,
)
from griffinlm.checkpoint.quantization_record import FORMAT_VERSION
from griffinlm.checkpoint.quantized import stored_tensors
from griffinlm.checkpoint.quantized_cache import cache_directory
from griffinlm.config import ModelConfig
from griffinlm.errors import GriffinError
from griffinlm.evaluate.own_process import in_own_process
from griffinlm.loading import find_model
from griffinlm.quantization import RECIPES, Recipe, recipe_of

FLOATS = {"onnx": ("float32",), "torch": ("float32", "bfloat16")}
"""Weights that are not quantized, by engine."""
ENGINES = tuple(FLOATS)
SEED = 0
LARGEST_SHARE_OF_DISK = 0.5
"""Of the free bytes of a disk, how much random weights may take."""


class BenchmarkWeightsError(GriffinError):
    """Weights that an engine does not run, or that find no room."""


def check_weights(engine: str, weights: str | None) -> None:
    """Refuses an engine that there is not, and weights that it cannot run.

    Raises:
        GriffinError: it names what is allowed.
    """
    if engine not in ENGINES:
        raise BenchmarkWeightsError(f"engine is {engine!r}; allowed are {', '.join(ENGINES)}")
    if weights is None or weights in FLOATS[engine]:
        return
    if engine == "torch":
        raise BenchmarkWeightsError(f"weights is {weights!r}; engine torch has {', '.join(FLOATS[engine])}")
    recipe_of(weights)


def weights_run(checkpoint: Checkpoint, engine: str, precision: str) -> str:
    """The name of the weights that an engine multiplies with; the torch engine dequantizes when it loads."""
    if engine == "torch" or checkpoint.quantization is None:
        return precision
    recipe = checkpoint.quantization.recipe
    return next((name for name, known in RECIPES.items() if known == recipe), recipe.default.name)


def model_checkpoint(path_or_name: str, engine: str, weights: str | None) -> Checkpoint:
    """The checkpoint that `load` with these arguments reads: the model's own, or its quantized copy."""
    checkpoint = open_checkpoint(find_model(path_or_name))
    if weights is None or weights in FLOATS[engine] or checkpoint.quantization is not None:
        return checkpoint
    return quantized_copy(checkpoint, recipe_of(weights))


def random_checkpoint(preset: str, engine: str, weights: str) -> Checkpoint:
    """A checkpoint of a preset with random weights, from the cache, else written now by a process of its own.

    The cache is `griffinlm/random` in `$XDG_CACHE_HOME` or `~/.cache`; where that is full or cannot be written, the
    files live in a temporary directory as long as the checkpoint.

    Raises:
        GriffinError: no such preset, or not enough room on either disk.
    """
    config = ModelConfig.preset(preset)
    recipe = None if weights in FLOATS[engine] else recipe_of(weights)
    kind = weights if recipe is None else f"{recipe.default.name}-v{FORMAT_VERSION}"
    digest = hashlib.sha256(json.dumps(config.to_dict()).encode()).hexdigest()[:8]
    place = cache_directory().parent / "random" / f"{preset}-{kind}-{digest}"
    keep_alive = None
    # Unlike Path.exists, false also where nobody may look.
    if not os.path.exists(place):
        place, keep_alive = _room(place, _num_bytes(config, recipe, weights))
        try:
            in_own_process(_write, config, recipe, weights, place)
        except CheckpointError:
            # Another process may have been faster.
            if not place.exists():
                raise
    checkpoint = open_checkpoint(place)
    if checkpoint.config != config:
        raise BenchmarkWeightsError(f"{place} holds another model than preset {preset}", hint="remove that directory")
    checkpoint.keep_alive = keep_alive
    return checkpoint


def _write(config: ModelConfig, recipe: Recipe | None, weights: str, place: Path) -> None:
    if recipe is None:
        write_checkpoint(config, initial_tensors(config, SEED), place, "griffinlm", weights)
    else:
        write_random_quantized(config, recipe, place, SEED)


def _num_bytes(config: ModelConfig, recipe: Recipe | None, weights: str) -> int:
    if recipe is None:
        return config.num_parameters * (4 if weights == "float32" else 2)
    tensors = stored_tensors(config, recipe).values()
    return sum(math.prod(tensor.shape) * np.dtype(tensor.dtypes[0]).itemsize for tensor in tensors)


def _room(place: Path, num_bytes: int) -> tuple[Path, tempfile.TemporaryDirectory[str] | None]:
    """A place for that many bytes: the one given, or one in a temporary directory that must be kept alive."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=place.parent).close()
        free = shutil.disk_usage(place.parent).free
    except OSError:
        free = 0
    if num_bytes <= LARGEST_SHARE_OF_DISK * free:
        return place, None
    other = Path(tempfile.gettempdir())
    free = shutil.disk_usage(other).free
    if num_bytes > LARGEST_SHARE_OF_DISK * free:
        raise BenchmarkWeightsError(
            f"random weights need {num_bytes / 1e6:,.0f} MB of disk, at most half of what is free; "
            f"{place.parent} is full or not writable, {other} has {free / 1e6:,.0f} MB free"
        )
    directory = tempfile.TemporaryDirectory(prefix="griffinlm-")
    return Path(directory.name) / place.name, directory
