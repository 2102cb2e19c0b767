"""Small models are quantized when they are loaded; what comes out is kept on disk for the next time."""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from griffinlm.checkpoint.checkpoint import Checkpoint, open_checkpoint
from griffinlm.checkpoint.errors import CheckpointError
from griffinlm.checkpoint.quantization_record import FORMAT_VERSION
from griffinlm.checkpoint.write_quantized import write_quantized
from griffinlm.quantization import Recipe

LARGEST_PARAMETERS = 250_000_000
"""Above this, quantizing takes minutes and gigabytes of disk, which nobody should meet by surprise."""


def quantized_copy(checkpoint: Checkpoint, recipe: Recipe) -> Checkpoint:
    """The same model by `recipe`, from the cache where it is there and whole, else made now; the tokenizer is its own.

    The cache is `griffinlm/quantized` in `$XDG_CACHE_HOME` or `~/.cache`; where there is none or it cannot be written,
    the copy lives in a temporary directory as long as the checkpoint.

    Raises:
        CheckpointError: the model is too large to be quantized in passing, or damaged.
    """
    num_parameters = checkpoint.config.num_parameters
    if num_parameters > LARGEST_PARAMETERS:
        raise CheckpointError(
            f"{checkpoint.path} has {num_parameters:,} parameters; up to {LARGEST_PARAMETERS:,} are quantized on load",
            hint=f"griffin quantize {checkpoint.path} NEW_DIRECTORY, then load that",
        )
    copy = _copy(checkpoint, recipe)
    # A copy in the cache may have been made beside another tokenizer.
    copy.tokenizer_directory = checkpoint.tokenizer_directory
    return copy


def _copy(checkpoint: Checkpoint, recipe: Recipe) -> Checkpoint:
    key = json.dumps([FORMAT_VERSION, checkpoint.digest(), checkpoint.config.to_dict(), recipe.to_dict()])
    try:
        place = cache_directory() / hashlib.sha256(key.encode()).hexdigest()[:32]
    except CheckpointError:
        return _temporary(checkpoint, recipe)
    found = _whole(place)
    if found is not None:
        return found
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_quantized(checkpoint, recipe, place)
    except (CheckpointError, OSError):
        # Another process may have been faster.
        found = _whole(place)
        if found is not None:
            return found
        return _temporary(checkpoint, recipe)
    return open_checkpoint(place)


def cache_directory() -> Path:
    """Where quantized copies are kept.

    Raises:
        CheckpointError: the user has no home directory.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        cache = Path(given) if given else Path.home() / ".cache"
    except RuntimeError as error:
        raise CheckpointError("there is no home directory to keep a cache in", hint="set XDG_CACHE_HOME") from error
    return cache / "griffinlm" / "quantized"


def _whole(place: Path) -> Checkpoint | None:
    """What the cache holds there; a damaged copy is removed."""
    # Unlike Path.is_dir, false also where nobody may look.
    if not os.path.isdir(place):
        return None
    try:
        found = open_checkpoint(place)
        found.verify()
    except CheckpointError:
        shutil.rmtree(place, ignore_errors=True)
        return None
    return found


def _temporary(checkpoint: Checkpoint, recipe: Recipe) -> Checkpoint:
    directory = tempfile.TemporaryDirectory(prefix="griffinlm-")
    write_quantized(checkpoint, recipe, Path(directory.name) / "model")
    copy = open_checkpoint(Path(directory.name) / "model")
    copy.keep_alive = directory
    return copy
