"""The file of a checkpoint directory that says when a token may leave the loops of its model early."""

import hashlib
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from griffinlm.checkpoint.errors import CheckpointError, describe
from griffinlm.config import ModelConfig

EXITS_FILE = "exits.safetensors"
FORMAT_VERSION = 1
METADATA = "exits"
"""Entry of the file's metadata that holds what is no tensor, as JSON."""


@dataclass(frozen=True)
class Exits:
    """Behind every loop but the last a small head, and from which confidence on tokens may leave there.

        confidence = sigmoid(weights . relu(inner norm(x) + inner_bias) + bias),   norm the model's final norm

    is how likely the best next token behind the loop is that of full depth. All are float32, R loops.
    """

    inner: np.ndarray
    """[R - 1, h, D]."""
    inner_bias: np.ndarray
    """[R - 1, h]."""
    weights: np.ndarray
    """[R - 1, h]."""
    bias: np.ndarray
    """[R - 1]."""
    thresholds: tuple[float, ...]
    """Infinite where no token leaves."""
    quality: float
    """Share of the tokens that left at calibration, or more, whose best next token was that of full depth."""
    shares: tuple[float, ...]
    """Of the tokens at calibration that may leave behind each loop, whether or not they left before."""
    num_tokens: int
    """At calibration."""

    def confidence(self, normed: np.ndarray) -> np.ndarray:
        """[N, R - 1] of what is behind the loops after the final norm, [N, R - 1, D]."""
        hidden = np.einsum("nld,lhd->nlh", normed, self.inner, optimize=True) + self.inner_bias
        score = np.einsum("nlh,lh->nl", np.maximum(hidden, 0.0), self.weights) + self.bias
        with np.errstate(over="ignore"):  # 1 / infinity is the 0 that is meant
            return 1.0 / (1.0 + np.exp(-score))

    def digest(self) -> str:
        """SHA-256 of all that decides which tokens leave."""
        digest = hashlib.sha256(json.dumps(self.thresholds).encode())
        for name in _SHAPES:
            values = getattr(self, name)
            digest.update(f"{name} {values.shape}".encode() + np.ascontiguousarray(values, np.float32).tobytes())
        return digest.hexdigest()


def write_exits(directory: Path | str, exits: Exits) -> None:
    """Writes the file of exits into a checkpoint directory, in the place of one that is there.

    Raises:
        CheckpointError: the system refuses to write.
    """
    tensors = {name: np.ascontiguousarray(getattr(exits, name), np.float32) for name in _SHAPES}
    facts = {"format_version": FORMAT_VERSION}
    facts |= {name: getattr(exits, name) for name in ("thresholds", "quality", "shares", "num_tokens")}
    path = Path(directory) / EXITS_FILE
    part = path.with_suffix(".part")
    try:
        # One entry, because several have no order, and equal exits are equal files.
        part.write_bytes(save(tensors, {METADATA: json.dumps(facts)}))
        part.replace(path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {describe(error)}") from error


def read_exits(directory: Path | str, config: ModelConfig) -> Exits | None:
    """The exits of a model in a checkpoint directory; None where it has no file of them.

    Raises:
        CheckpointError: the file cannot be read, is damaged, or is of a model with other loops or another width.
    """
    path = Path(directory) / EXITS_FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as opened:
            facts = json.loads(opened.metadata()[METADATA])
            version = facts["format_version"]
            if version != FORMAT_VERSION:
                raise CheckpointError(
                    f"{path} has format_version {version!r}; this version of griffinlm reads {FORMAT_VERSION}"
                )
            tensors = {name: opened.get_tensor(name) for name in _SHAPES}
        exits = Exits(
            **tensors,
            thresholds=tuple(float(threshold) for threshold in facts["thresholds"]),
            quality=float(facts["quality"]),
            shares=tuple(float(share) for share in facts["shares"]),
            num_tokens=int(facts["num_tokens"]),
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {describe(error)}") from error
    _check(path, exits, config)
    return exits


def copy_exits(source: Path, destination: Path) -> None:
    """Copies a checkpoint directory's file of exits into another one, where it has one."""
    if (source / EXITS_FILE).is_file():
        shutil.copyfile(source / EXITS_FILE, destination / EXITS_FILE)


_SHAPES = {"inner": "lhd", "inner_bias": "lh", "weights": "lh", "bias": "l"}
"""Of the tensors: loops but the last, hidden numbers, the model's width."""


def _check(path: Path, exits: Exits, config: ModelConfig) -> None:
    num_loops = config.num_loops
    sizes = {"l": num_loops - 1, "h": exits.bias.size and exits.weights.shape[-1], "d": config.width}
    for name, axes in _SHAPES.items():
        values, expected = getattr(exits, name), [sizes[axis] for axis in axes]
        if list(values.shape) != expected or values.dtype != np.float32:
            raise CheckpointError(
                f"{path} has {name} of {values.dtype} {list(values.shape)}; "
                f"{num_loops} loops of width {config.width} take float32 {expected}"
            )
        if not np.isfinite(values).all():
            raise CheckpointError(f"{path} holds NaN or infinity in {name}")
    for name, values, most in (("thresholds", exits.thresholds, math.inf), ("shares", exits.shares, 1.0)):
        if len(values) != num_loops - 1 or not all(0 <= value <= most for value in values):
            allowed = f"{num_loops} loops take {num_loops - 1}, in 0..{most:g}"
            raise CheckpointError(f"{path} has {name} {str(values)[:60]}; {allowed}")
    if not 0 <= exits.quality <= 1:
        raise CheckpointError(f"{path} has quality {exits.quality}; it is a share, in 0..1")
