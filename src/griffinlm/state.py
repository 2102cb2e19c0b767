"""State: everything a model remembers of its rows, as named arrays in a fixed number of bytes. Needs no engine."""

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from griffinlm.config import ModelConfig
from griffinlm.errors import GriffinError

FORMAT_VERSION = 1
NOTHING_PENDING = -1
MAX_CAPACITY_TOKENS = 1 << 40

ARRAY_TYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),
}


class StateError(GriffinError):
    """A state that does not fit: another model's, damaged, or used where it cannot be."""


@dataclass(frozen=True)
class Fingerprint:
    """What a state belongs to. Two models may exchange states exactly where their fingerprints are equal."""

    weights: str
    """Digest of the source weights and of the configuration they run in."""
    precision: str
    window_dtype: str
    tokenizer: str
    """Digest of the tokenizer, empty where the model has none."""
    format_version: int = FORMAT_VERSION


class Identity:
    """The fingerprint of a loaded model, computed when first asked for (the weights must be read once more)."""

    def __init__(self, compute: Callable[[], Fingerprint]) -> None:
        self._compute = compute

    @cached_property
    def fingerprint(self) -> Fingerprint:
        return self._compute()

    def same_as(self, other: "Identity") -> bool:
        return self is other or self.fingerprint == other.fingerprint


class StateOwner(Protocol):
    """What `State.load` must know of a model."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def identity(self) -> Identity: ...
    @property
    def precision(self) -> str: ...
    @property
    def window_dtype(self) -> str: ...


@dataclass(frozen=True)
class ArraySpec:
    """Shape and type of one array of a state."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        return size


def block_layout(
    config: ModelConfig, rows: int, capacity: int | None, window_dtype: str, activation_dtype: str
) -> dict[str, ArraySpec]:
    """The arrays that the blocks of a model keep for `rows` rows, by name.

    Args:
        capacity: tokens that global attention keeps; None where the model has none.
        window_dtype: type of attention's keys and values; with int8 each has a float32 scale a token.
        activation_dtype: type of the convolution's tail; the recurrent state is float32 in every precision.

    Raises:
        StateError: the capacity is missing where the model needs one, or given where it has no use.
    """
    if config.needs_capacity and (capacity is None or capacity < 1):
        raise StateError(
            f"the state's capacity is {capacity}; a model with global attention needs room for at least one token"
        )
    if capacity is not None and capacity > MAX_CAPACITY_TOKENS:
        raise StateError(f"the state's capacity is {capacity} tokens; it must be at most {MAX_CAPACITY_TOKENS}")
    if capacity is not None and not config.needs_capacity:
        raise StateError(f"capacity is {capacity}; this model's state has a fixed size and takes none")
    layout: dict[str, ArraySpec] = {}
    for step in config.plan():
        if step.kind == "recurrent":
            assert config.recurrent is not None
            past, width = config.recurrent.num_conv_taps - 1, config.recurrent.width
            layout[f"{step.state}.hidden"] = ArraySpec((rows, width), ARRAY_TYPES["float32"])
            layout[f"{step.state}.convolution"] = ArraySpec((rows, past, width), ARRAY_TYPES[activation_dtype])
        else:
            assert config.attention is not None
            num_slots = config.attention.window_tokens if step.kind == "local_attention" else capacity
            assert num_slots is not None
            ring = ArraySpec((rows, num_slots, config.attention.head_size), ARRAY_TYPES[window_dtype])
            layout[f"{step.state}.keys"] = layout[f"{step.state}.values"] = ring
            if window_dtype == "int8":
                scales = ArraySpec((rows, num_slots), ARRAY_TYPES["float32"])
                layout[f"{step.state}.key_scales"] = layout[f"{step.state}.value_scales"] = scales
    return layout


def state_layout(
    config: ModelConfig, rows: int, capacity: int | None, window_dtype: str, activation_dtype: str
) -> dict[str, ArraySpec]:
    """All arrays of a state: those of the blocks, and the two counters of each row."""
    counters = {name: ArraySpec((rows,), np.dtype(np.int64)) for name in ("num_tokens", "pending")}
    return {**counters, **block_layout(config, rows, capacity, window_dtype, activation_dtype)}


class State:
    """What one or several conversations are to a model, after the tokens it has read.

    `num_tokens` [rows] counts the tokens of each row's document. `pending` [rows] is the last sampled token, which the
    model has not read yet, or -1: it is part of the conversation, and generate, stream and read consume it first.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], identity: Identity) -> None:
        self._arrays = dict(arrays)
        self.identity = identity

    @property
    def rows(self) -> int:
        return len(self.num_tokens)

    @property
    def num_tokens(self) -> np.ndarray:
        return self._arrays["num_tokens"]

    @property
    def pending(self) -> np.ndarray:
        return self._arrays["pending"]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays; the same at every length of the conversation."""
        return sum(array.nbytes for array in self._arrays.values())

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, not copied; each has a leading row axis."""
        return dict(self._arrays)

    def copy(self) -> "State":
        return State({name: array.copy() for name, array in self._arrays.items()}, self.identity)

    def row(self, index: int) -> "State":
        """One row, as a copy that lives on its own."""
        return State({name: array[index : index + 1].copy() for name, array in self._arrays.items()}, self.identity)

    def with_pending(self, tokens: Sequence[int]) -> "State":
        """The same state with other pending tokens, one a row; -1 is none.

        Raises:
            StateError: there are not as many tokens as rows.
        """
        if len(tokens) != self.rows:
            raise StateError(f"there are {len(tokens)} pending tokens; the state has {self.rows} rows")
        return State({**self._arrays, "pending": np.asarray(tokens, np.int64)}, self.identity)

    @staticmethod
    def stack(states: Sequence["State"]) -> "State":
        """Several states of one model as the rows of one."""
        names = states[0]._arrays
        return State({n: np.concatenate([s._arrays[n] for s in states]) for n in names}, states[0].identity)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file with fingerprint and checksum, whole or not at all, readable by its owner alone.

        Raises:
            StateError: the file cannot be written; nothing is left behind.
        """
        path = Path(path)
        require_writable(path)
        fingerprint = dataclasses.asdict(self.identity.fingerprint)
        metadata = {
            "griffinlm": json.dumps({"fingerprint": fingerprint, "checksum": _checksum(self._arrays, fingerprint)})
        }
        arrays = {name: np.ascontiguousarray(array) for name, array in self._arrays.items()}
        try:
            _write_whole(path, safetensors.numpy.save(arrays, metadata=metadata))
        except OSError as error:
            raise StateError(f"state file {path} cannot be written: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: StateOwner) -> "State":
        """Reads a state that `save` wrote for the same model.

        Raises:
            StateError: there is no such file, it is damaged, no state at all, or belongs to another model.
        """
        path = Path(path)
        arrays, metadata = _read(path)
        try:
            record = json.loads(metadata["griffinlm"])
            fingerprint, checksum = dict(record["fingerprint"]), record["checksum"]
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"{path} is no state file of griffinlm") from error
        if fingerprint.get("format_version") != FORMAT_VERSION:
            version = fingerprint.get("format_version")
            raise StateError(f"state file {path} has format version {version!r}; this program reads {FORMAT_VERSION}")
        if checksum != _checksum(arrays, fingerprint):
            raise StateError(f"state file {path} is damaged: its checksum does not match its content")
        expected = dataclasses.asdict(model.identity.fingerprint)
        different = [name for name, value in expected.items() if fingerprint.get(name) != value]
        if different:
            found = ", ".join(f"{n} {_short(fingerprint.get(n))} instead of {_short(expected[n])}" for n in different)
            raise StateError(
                f"state file {path} belongs to another model: {found}",
                hint="load it with the model, precision and window type it was saved with",
            )
        _check_layout(path, arrays, model)
        return cls(arrays, model.identity)


def require_writable(path: Path) -> None:
    """Refuses a place where no state file can stand; what is there already may only be a regular file.

    A device or a link would be replaced by the new file, not written through.

    Raises:
        StateError: the place is taken by something else, or its directory is missing.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise StateError(f"state file {path} cannot be written: a directory, device or link has that name")
    if not path.parent.is_dir():
        raise StateError(f"state file {path} cannot be written: there is no directory {path.parent}")


def _check_layout(path: Path, arrays: dict[str, np.ndarray], model: StateOwner) -> None:
    capacity, rows = None, len(arrays["num_tokens"]) if arrays.get("num_tokens", np.zeros(())).ndim == 1 else 0
    if model.config.needs_capacity:
        keys = next((a for n, a in arrays.items() if n.endswith(".keys") and a.ndim == 3), None)
        capacity = 0 if keys is None else keys.shape[1]
    expected = state_layout(model.config, rows, capacity, model.window_dtype, model.precision)
    found = {name: ArraySpec(array.shape, array.dtype) for name, array in arrays.items()}
    wrong = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
    if rows < 1 or wrong:
        raise StateError(
            f"state file {path} does not have the arrays of this model: {', '.join(wrong[:3]) or 'no rows'}"
        )
    num_tokens, pending = arrays["num_tokens"], arrays["pending"]
    if num_tokens.min() < 0 or pending.min() < NOTHING_PENDING or pending.max() >= model.config.vocab_size:
        raise StateError(f"state file {path} counts tokens or holds token ids that cannot be")
    if capacity is not None and num_tokens.max() > capacity:
        raise StateError(f"state file {path} holds {num_tokens.max()} tokens in a capacity of {capacity}")


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return arrays, file.metadata() or {}
    except FileNotFoundError as error:
        raise StateError(f"there is no state file {path}") from error
    except OSError as error:
        raise StateError(f"state file {path} cannot be read: {error.strerror or error}") from error
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise StateError(f"{path} is no state file of griffinlm, or is damaged: {_one_line(error)}") from error


def _checksum(arrays: Mapping[str, np.ndarray], fingerprint: Mapping[str, object]) -> str:
    digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _write_whole(path: Path, content: bytes) -> None:
    """Temporary name, sync, rename: a reader sees the old file or the new one."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _short(value: object) -> str:
    text = str(value) or "none"
    return text if len(text) <= 16 else text[:12] + "..."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
