"""From a model to a recursive one: shared parameters, and the low-rank rest of every layer."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from griffinlm.checkpoint import Checkpoint, write_checkpoint
from griffinlm.checkpoint.initial import initial_tensor
from griffinlm.checkpoint.new_directory import require_free
from griffinlm.checkpoint.tensor_source import WEIGHT_TYPES, WEIGHT_TYPES_TEXT
from griffinlm.config import LOW_RANK, ModelConfig, is_matrix
from griffinlm.progress import progress
from griffinlm.recursive.low_rank import nearest_of_rank
from griffinlm.recursive.settings import Recursion, RecursiveError, stepwise_layers

RECORD_FILE = "recursion.json"
"""Beside the weights: how they came about."""
FORMAT_VERSION = 1


class MatrixReport(NamedTuple):
    """What became of one matrix W of one layer, W' being the shared matrix in its place."""

    parameter: str
    shared: str
    rank: int
    """Of its term; 0 where it has none."""
    distance: float
    """||W - W'|| / ||W||."""
    relative_error: float
    """||W - W' - up down|| / ||W||."""


def write_recursive(
    checkpoint: Checkpoint, recursion: Recursion, destination: Path | str, dtype: str | None = None
) -> list[MatrixReport]:
    """Writes a new directory with the recursive model and a record of the conversion; whole, or not at all.

    A shared matrix, one of the layers that become it, and their difference are in memory at a time. Terms are found
    from the shared matrix as it is stored.

    Args:
        dtype: type of all tensors: float32, bfloat16 or float16; None keeps each one's own, and a term has that of its
            matrix.

    Returns:
        A report of every matrix of the layers in the loops, shared matrix by shared matrix.

    Raises:
        RecursiveError: the checkpoint is quantized or recursive already, or has no room for so many loops.
        CheckpointError: the checkpoint is damaged, the destination is not free, or the system refuses to write.
    """
    if checkpoint.quantization is not None:
        raise RecursiveError(
            f"{checkpoint.path} is quantized ({checkpoint.quantization.recipe.default.name})",
            hint="convert the checkpoint that it was made from, then quantize",
        )
    if dtype is not None and dtype not in WEIGHT_TYPES:
        raise RecursiveError(f"dtype is {dtype[:60]!r}; allowed are {WEIGHT_TYPES_TEXT}")
    require_free(Path(destination))
    config = recursion.config_of(checkpoint.config)
    conversion = _Conversion(checkpoint, config, recursion, dtype)

    def write_record(directory: Path) -> None:
        record = {
            "format_version": FORMAT_VERSION,
            **recursion.to_dict(),
            "source_digest": checkpoint.digest(),
            "stepwise_layers": stepwise_layers(config) if recursion.init == "stepwise" else None,
            "matrices": [report._asdict() for report in conversion.reports],
        }
        (directory / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    tensors = progress(conversion.tensors(), "converting", len(config.parameter_shapes()))
    tokenizer = checkpoint.tokenizer_directory
    write_checkpoint(config, tensors, destination, "griffinlm", None, tokenizer, write_rest=write_record)
    return conversion.reports


class _Conversion:
    """The tensors of a recursive model, made one after another from those of the model it was."""

    def __init__(self, source: Checkpoint, config: ModelConfig, recursion: Recursion, dtype: str | None) -> None:
        self.reports: list[MatrixReport] = []
        self._source, self._config, self._recursion = source, config, recursion
        self._dtype = None if dtype is None else WEIGHT_TYPES[dtype]
        self._shapes = config.parameter_shapes()
        self._order = {name: index for index, name in enumerate(self._shapes)}

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every parameter with its values, the terms of all layers behind the matrix that they share."""
        places: dict[str, list[str]] = {}
        for place in self._source.config.parameter_shapes():
            places.setdefault(self._config.parameter_at(place), []).append(place)
        looped = tuple(f"layers.{i}." for i in range(self._config.num_looped_layers))
        for name, users in places.items():
            shared = self._shared(name, users)
            yield name, shared
            for place in users:
                if is_matrix(place) and place.startswith(looped):
                    yield from self._term(place, name, shared)

    def _shared(self, name: str, users: list[str]) -> np.ndarray:
        """What a parameter begins as, in the type that it is stored in."""
        first = users[0]
        if len(users) > 1 and self._recursion.init == "stepwise":
            _, number, rest = name.split(".", 2)
            first = f"layers.{stepwise_layers(self._config)[int(number)]}.{rest}"
        values = self._source.tensor(first)
        dtype = self._dtype or values.dtype
        if len(users) > 1 and self._recursion.init == "average":
            values = values.astype(np.float32)
            for user in users[1:]:
                values += self._source.tensor(user).astype(np.float32)
            values /= len(users)
        return _cast(values, dtype)

    def _term(self, place: str, name: str, shared: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """down and up of the matrix at a place, and its report."""
        matrix = _outputs_first(self._source.tensor(place).astype(np.float32))
        norm = _norm(matrix)
        matrix -= _outputs_first(shared.astype(np.float32))
        distance = error = _norm(matrix)
        term = place.removesuffix(".weight") + LOW_RANK
        rank = self._shapes[f"{term}.down"][-2] if f"{term}.down" in self._shapes else 0
        if rank:
            factors = {}
            for side, values in self._factors(place, matrix, rank).items():
                factors[side] = _cast(values, shared.dtype)
                yield f"{term}.{side}", factors[side]
            matrix -= factors["up"].astype(np.float32) @ factors["down"].astype(np.float32)
            error = _norm(matrix)
        self.reports.append(MatrixReport(place, name, rank, distance / (norm or 1.0), error / (norm or 1.0)))

    def _factors(self, place: str, rest: np.ndarray, rank: int) -> dict[str, np.ndarray]:
        """down and up, whose product is nearest to the rest of a matrix; where nothing is left, what training needs."""
        term = place.removesuffix(".weight") + LOW_RANK
        random = np.random.default_rng([self._recursion.seed, self._order[f"{term}.down"]])
        if self._recursion.low_rank == "zero" or not rest.any():
            names = {side: f"{term}.{side}" for side in ("down", "up")}
            return {side: initial_tensor(self._config, n, self._shapes[n], random) for side, n in names.items()}
        try:
            up, down = nearest_of_rank(rest, rank, random)
        except np.linalg.LinAlgError as error:
            raise RecursiveError(f"{place} differs from the shared matrix by what has no singular values") from error
        return {"down": down, "up": up}


def _cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A value past the type's largest becomes infinite, which the writer refuses."""
    with np.errstate(over="ignore"):
        return values.astype(dtype, copy=False)


def _outputs_first(values: np.ndarray) -> np.ndarray:
    """A matrix [N, K] as it is; the blocks [h, b_in, b_out] of a gate as [h, b_out, b_in]."""
    return values if values.ndim == 2 else values.swapaxes(1, 2)


def _norm(values: np.ndarray) -> float:
    """||values||, in float64: a square of a large weight may be past the largest float32."""
    flat = values.reshape(-1).astype(np.float64)
    return math.sqrt(flat @ flat)
