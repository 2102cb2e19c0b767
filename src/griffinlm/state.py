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
from typing import Any, NamedTuple, Protocol

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


_SAFETENSORS_TYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I8": np.dtype(np.int8),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
}
STATE_FILE = "state file"


class StateError(GriffinError):
    """A state that does not fit: another model's, damaged, or used where it cannot be."""


@dataclass(frozen=True)
class Fingerprint:
    """What a state belongs to. Two models may exchange states exactly where their fingerprints are equal."""

    weights: str
    """Digest of the source weights, of the configuration they run in, and of the exits where tokens leave early."""
    precision: str
    window_dtype: str
    tokenizer: str
    """Digest of the tokenizer, empty where the model has none."""
    adapter: str = ""
    """Digest of the adapter that the state was made under, empty where there was none."""
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


def attention_bytes_per_token(config: ModelConfig, window_dtype: str) -> int:
    """Bytes that a token would add to the state if every block were global attention; 0 without sizes of attention.

    2 * blocks * head size * bytes of a number, the cache of a transformer of the model's own depth and head.
    """
    if config.attention is None:
        return 0
    return 2 * len(config.block_kinds) * config.attention.head_size * ARRAY_TYPES[window_dtype].itemsize


def state_layout(
    config: ModelConfig, rows: int, capacity: int | None, window_dtype: str, activation_dtype: str
) -> dict[str, ArraySpec]:
    """All arrays of a state: those of the blocks, and the counters of each row.

    In a model that skips these are three: `num_skipped` [rows, loops - 1] are the tokens of the document that each loop
    behind the first has not read.
    """
    number = np.dtype(np.int64)
    counters = {name: ArraySpec((rows,), number) for name in ("num_tokens", "pending")}
    if config.skips:
        assert config.recursion is not None
        counters["num_skipped"] = ArraySpec((rows, config.recursion.num_loops - 1), number)
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

    def digest(self) -> str:
        """SHA-256 of the arrays and of the fingerprint that they belong to."""
        return _checksum(self._arrays, dataclasses.asdict(self.identity.fingerprint))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file with fingerprint and checksum, whole or not at all, readable by its owner alone.

        Raises:
            StateError: the file cannot be written; nothing is left behind.
        """
        write_whole(path, seal(self._arrays, self.identity), STATE_FILE)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: StateOwner) -> "State":
        """Reads a state that `save` wrote for the same model.

        Raises:
            StateError: there is no such file, it is damaged, no state at all, or belongs to another model.
        """
        what = f"{STATE_FILE} {path}"
        sealed = unseal(read_whole(path, STATE_FILE), STATE_FILE, str(path))
        sealed.require_of(model, what)
        check_layout(sealed.arrays, model, what)
        return cls(sealed.arrays, model.identity)


class Sealed(NamedTuple):
    """The content of a file that `seal` made."""

    arrays: dict[str, np.ndarray]
    details: Any
    fingerprint: Mapping[str, object]

    def require_of(self, model: StateOwner, what: str) -> None:
        """StateError, beginning with `what`, where the content belongs to another model."""
        expected = dataclasses.asdict(model.identity.fingerprint)
        different = [name for name, value in expected.items() if self.fingerprint.get(name) != value]
        if different:
            pairs = ((name, _short(self.fingerprint.get(name)), _short(expected[name])) for name in different)
            found = ", ".join(f"{name} {found} instead of {wanted}" for name, found, wanted in pairs)
            raise StateError(
                f"{what} belongs to another model: {found}",
                hint="load it with the model, precision, window type, exits and adapter it was saved with",
            )


def seal(arrays: Mapping[str, np.ndarray], identity: Identity, details: object = None) -> bytes:
    """A safetensors file of arrays and details, a JSON value, with fingerprint and a checksum over all three."""
    # What is read back is what JSON makes of it; numbers may be numpy's.
    details = json.loads(json.dumps(details, default=lambda number: number.item()))
    fingerprint = dataclasses.asdict(identity.fingerprint)
    record: dict[str, object] = {"fingerprint": fingerprint, "checksum": _checksum(arrays, fingerprint, details)}
    if details is not None:
        record["details"] = details
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return safetensors.numpy.save(plain, metadata={"griffinlm": json.dumps(record)})


def unseal(content: bytes, kind: str, name: str) -> Sealed:
    """What `seal` was given.

    Args:
        kind, name: what the content is called in a message.

    Raises:
        StateError: it is damaged, or nothing of the kind.
    """
    arrays, metadata = _parsed(content, kind, name)
    try:
        record = json.loads(metadata["griffinlm"])
        fingerprint, checksum, details = dict(record["fingerprint"]), record["checksum"], record.get("details")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise StateError(f"{name} is no {kind} of griffinlm") from error
    if fingerprint.get("format_version") != FORMAT_VERSION:
        version = fingerprint.get("format_version")
        raise StateError(f"{kind} {name} has format version {version!r}; this program reads {FORMAT_VERSION}")
    if checksum != _checksum(arrays, fingerprint, details):
        raise StateError(f"{kind} {name} is damaged: its checksum does not match its content")
    # Files of before there were adapters do not name one.
    return Sealed(arrays, details, {"adapter": "", **fingerprint})


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


def check_layout(arrays: Mapping[str, np.ndarray], model: StateOwner, what: str) -> None:
    """Refuses arrays that are no state of the model; StateError begins with `what`."""
    capacity, rows = None, len(arrays["num_tokens"]) if arrays.get("num_tokens", np.zeros(())).ndim == 1 else 0
    if model.config.needs_capacity:
        keys = next((a for n, a in arrays.items() if n.endswith(".keys") and a.ndim == 3), None)
        capacity = 0 if keys is None else keys.shape[1]
    expected = state_layout(model.config, rows, capacity, model.window_dtype, model.precision)
    found = {name: ArraySpec(array.shape, array.dtype) for name, array in arrays.items()}
    wrong = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
    if rows < 1 or wrong:
        raise StateError(f"{what} does not have the arrays of this model: {', '.join(wrong[:3]) or 'no rows'}")
    num_tokens, pending = arrays["num_tokens"], arrays["pending"]
    if num_tokens.min() < 0 or pending.min() < NOTHING_PENDING or pending.max() >= model.config.vocab_size:
        raise StateError(f"{what} counts tokens or holds token ids that cannot be")
    if not can_be_skipped(model.config, arrays):
        raise StateError(f"{what} counts skipped tokens that cannot be")
    if capacity is not None and num_tokens.max() > capacity:
        raise StateError(f"{what} holds {num_tokens.max()} tokens in a capacity of {capacity}")


def can_be_skipped(config: ModelConfig, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether the counts of skipped tokens can be: 0 or more, by loops in turn not less, and no more than were read."""
    if not config.skips:
        return True
    num_tokens, num_skipped = arrays["num_tokens"], arrays["num_skipped"]
    counts = np.column_stack([np.zeros_like(num_tokens), num_skipped, num_tokens])
    return bool((counts[:, :-1] <= counts[:, 1:]).all())


def read_whole(path: str | os.PathLike[str], kind: str) -> bytes:
    """The content of a file; StateError where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise StateError(f"there is no {kind} {path}") from error
    except (OSError, ValueError) as error:
        # A ValueError is of a name that holds a zero byte.
        raise StateError(f"{kind} {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def write_whole(path: str | os.PathLike[str], content: bytes, kind: str) -> None:
    """Temporary name, sync, rename: a reader sees the old file or the new one, and only its owner sees it.

    Raises:
        StateError: the file cannot be written; nothing is left behind.
    """
    path = Path(path)
    require_writable(path)
    try:
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
    except (OSError, ValueError) as error:
        raise StateError(f"{kind} {path} cannot be written: {getattr(error, 'strerror', None) or error}") from error


def _parsed(content: bytes, kind: str, name: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a safetensors file."""
    try:
        # The library checks the header, but gives neither its metadata nor bfloat16.
        arrays = {
            array: np.frombuffer(view["data"], _SAFETENSORS_TYPES[view["dtype"]]).reshape(view["shape"])
            for array, view in safetensors.deserialize(content)
        }
        header_bytes = int.from_bytes(content[:8], "little")
        return arrays, json.loads(content[8 : 8 + header_bytes]).get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise StateError(f"{name} is no {kind} of griffinlm, or is damaged: {_one_line(error)}") from error


def _checksum(arrays: Mapping[str, np.ndarray], fingerprint: Mapping[str, object], details: object = None) -> str:
    digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode())
    if details is not None:
        digest.update(json.dumps(details, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _short(value: object) -> str:
    text = str(value) or "none"
    return text if len(text) <= 16 else text[:12] + "..."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
