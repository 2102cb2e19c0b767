"""Adapters: what a PEFT directory adds to the matrices of a model."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import ml_dtypes  # noqa: F401  (gives numpy the type that safetensors asks of it for bfloat16)
import numpy as np
from safetensors import safe_open

from griffinlm.checkpoint.errors import CheckpointError, faults_error, reading
from griffinlm.checkpoint.names import TableName, entries
from griffinlm.checkpoint.peft_config import PeftConfig, read_peft_config
from griffinlm.checkpoint.store import type_name
from griffinlm.checkpoint.tensor_source import ExpectedTensor, TensorInfo, is_finite, raw_bytes
from griffinlm.config import EMBEDDING, ModelConfig, is_matrix

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
PREFIX = "base_model.model."
"""What PEFT puts before every name of the model that it wraps."""
NESTED = ".base_layer"
"""What it puts behind a module for every parameter of it that is adapted by itself, the last one excepted."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """The term up (down x) of one matrix, float32. Of a gate each of its h blocks has one of its own."""

    down: np.ndarray
    """A: [r, K]; of a gate [h, r, b]."""
    up: np.ndarray
    """B times the scaling: [N, r]; of a gate [h, b, r]."""

    @property
    def nbytes(self) -> int:
        return self.down.nbytes + self.up.nbytes


AdapterTerms = Mapping[str, Mapping[str, LowRank]]
"""Terms by the name of the adapter and that of the matrix."""


@dataclass(frozen=True, eq=False)
class LowRankAdapter:
    """Terms that are added to the products with a model's matrices."""

    terms: Mapping[str, LowRank]
    """By the place of the matrix, in the order of `ModelConfig.place_shapes()`."""

    def digest(self) -> str:
        """SHA-256 of the names, shapes and numbers of all terms."""
        digest = hashlib.sha256()
        for name, term in self.terms.items():
            digest.update(f"{name} {list(term.down.shape)} {list(term.up.shape)}\n".encode())
            digest.update(raw_bytes(term.down))
            digest.update(raw_bytes(term.up))
        return digest.hexdigest()


def read_low_rank(directory: Path, config: ModelConfig) -> LowRankAdapter:
    """A low-rank adapter of a model, from a directory as PEFT writes it: y = W x + scaling B (A x).

    Names are those of the published model or ours. A gate, which is no module, is one of PEFT's `target_parameters`.

    Raises:
        CheckpointError: the directory holds no such adapter, an adapter of another kind or of another model, or
            damaged files; faults of names and shapes are all in `.faults`.
    """
    file = directory / TENSORS_FILE
    with reading(directory):
        if not file.is_file() and (directory / PICKLE_FILE).is_file():
            raise CheckpointError(
                f"{directory} holds {PICKLE_FILE}, a pickle, which could run any program; it is not read",
                hint=f"save the adapter as {TENSORS_FILE}",
            )
        missing = [name for name in (CONFIG_FILE, TENSORS_FILE) if not (directory / name).is_file()]
        if missing:
            raise CheckpointError(f"{directory} is no adapter directory: it has no {' and no '.join(missing)}")
    peft = read_peft_config(directory / CONFIG_FILE)
    places = _places(directory, config, peft)
    with reading(file), safe_open(file, framework="numpy") as opened:
        found = {name: _info(opened, name) for name in opened.keys()}  # noqa: SIM118  (an open file is no mapping)
        chosen = _chosen(file, places, found)
        order = {name: index for index, name in enumerate(config.place_shapes())}
        terms = {
            place.ours: _term(place, peft, *(_values(file, opened, name) for name in place.tensors))
            for place in sorted(chosen, key=lambda place: order[place.ours])
        }
    for name, term in terms.items():
        if not is_finite(term.up):
            raise CheckpointError(f"{file}: the scaling takes the term of {name} out of the range of float32")
    return LowRankAdapter(terms)


class _Place(NamedTuple):
    """Where the term of one of our matrices stands in a file."""

    ours: str
    theirs: str
    """What PEFT's patterns are matched with: the name of the module, or of the parameter that is adapted by itself."""
    tensors: tuple[str, str]
    """Names of A and B."""
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    """Of A and B."""
    num_blocks: int | None
    """Of a gate; None of a linear."""


def _places(directory: Path, config: ModelConfig, peft: PeftConfig) -> list[_Place]:
    """Every place where a term may stand."""
    shapes, found, unknown = config.place_shapes(), [], set(peft.target_parameters)
    for ours_of in _parameter_names(config):
        modules: dict[str, list[str]] = {}
        for theirs in ours_of:
            modules.setdefault(theirs.rpartition(".")[0], []).append(theirs)
        for module, parameters in modules.items():
            targeted = [name for name in parameters if peft.targets(name)]
            unknown -= {target for target in unknown for name in targeted if f".{name}".endswith(f".{target}")}
            for name in targeted:
                if not _may_be_adapted(ours_of[name]):
                    raise CheckpointError(f"{directory}: target_parameters has {name}, which is no matrix of a product")
            for depth, name in enumerate(reversed(targeted)):
                found.append(_place(ours_of[name], name, module + NESTED * depth, shapes, peft))
            ours = ours_of.get(f"{module}.weight")
            if ours is not None and not targeted and _may_be_adapted(ours) and len(shapes[ours]) == 2:
                found.append(_place(ours, module, module, shapes, peft))
    if unknown:
        raise CheckpointError(f"{directory}: target_parameters has {min(unknown)!r}, which the model does not have")
    return found


def _parameter_names(config: ModelConfig) -> Iterator[dict[str, str]]:
    """Tables from the names that a model may have been trained under to ours: ours bare and wrapped, and published."""
    names = list(config.place_shapes())
    yield {name: name for name in names}
    yield {f"model.{name}": name for name in names}
    tables: tuple[TableName, ...] = ("recurrent_gemma", "gemma")
    for table in tables:
        try:
            rows = entries(table, config)
        except CheckpointError:
            continue
        yield {row.theirs: row.ours[0] for row in rows}


def _may_be_adapted(name: str) -> bool:
    return is_matrix(name) and name != EMBEDDING


def _place(ours: str, theirs: str, module: str, shapes: Mapping[str, tuple[int, ...]], peft: PeftConfig) -> _Place:
    rank, shape = peft.rank_of(theirs), shapes[ours]
    tensors = f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"
    if len(shape) == 2:
        return _Place(ours, theirs, tensors, ((rank, shape[1]), (shape[0], rank)), None)
    num_blocks, num_inputs, num_outputs = shape
    return _Place(
        ours, theirs, tensors, ((num_blocks * rank, num_outputs), (num_inputs, num_blocks * rank)), num_blocks
    )


def _chosen(file: Path, places: list[_Place], found: Mapping[str, TensorInfo]) -> list[_Place]:
    """The places that the file fills; raises CheckpointError with everything that fits nowhere."""
    chosen = [place for place in places if any(name in found for name in place.tensors)]
    wanted = {
        name: ExpectedTensor(shape) for place in chosen for name, shape in zip(place.tensors, place.shapes, strict=True)
    }
    faults = [f"{name} is missing, expected {tensor}" for name, tensor in wanted.items() if name not in found]
    faults += [f"{name} is unexpected, found {info}" for name, info in found.items() if name not in wanted]
    faults += [
        f"{name} is {found[name]}, expected {tensor}"
        for name, tensor in wanted.items()
        if name in found and not tensor.fits(found[name])
    ]
    if not found:
        faults.append("it holds no tensors")
    if len({place.ours for place in chosen}) < len(chosen):
        faults.append("it holds two terms of one matrix under different names")
    if faults:
        raise faults_error(file, faults)
    return chosen


def _term(place: _Place, peft: PeftConfig, a: np.ndarray, b: np.ndarray) -> LowRank:
    scaling = np.float32(peft.scaling_of(place.theirs))
    with np.errstate(over="ignore"):
        if place.num_blocks is None:
            return LowRank(a, b * scaling)
        # PEFT takes [h, b_in, b_out] for [h, out, in], so its A meets our outputs: W[e] += scaling B[:, :, e] A[e].
        down = b.reshape(b.shape[0], -1, place.num_blocks).transpose(2, 1, 0)
        up = a.reshape(place.num_blocks, -1, a.shape[1]).transpose(0, 2, 1) * scaling
    return LowRank(np.ascontiguousarray(down), np.ascontiguousarray(up))


def _info(opened: safe_open, name: str) -> TensorInfo:
    part = opened.get_slice(name)
    return TensorInfo(type_name(part.get_dtype()), tuple(part.get_shape()))


def _values(file: Path, opened: safe_open, name: str) -> np.ndarray:
    values = np.ascontiguousarray(opened.get_tensor(name).astype(np.float32))
    if not is_finite(values):
        raise CheckpointError(f"{file}: {name} holds NaN or infinity")
    return values
