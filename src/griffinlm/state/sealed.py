"""Files of arrays that belong to a model: a fingerprint, a checksum, written whole or not at all."""

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from griffinlm.errors import in_one_line
from griffinlm.state.identity import FORMAT_VERSION, Identity, StateError, StateOwner

_SAFETENSORS_TYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I8": np.dtype(np.int8),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
}


class Sealed(NamedTuple):
    """The content of a file that `seal` made."""

    arrays: dict[str, np.ndarray]
    details: Any
    fingerprint: Mapping[str, object]

    def require_of(self, model: StateOwner, what: str) -> None:
        """StateError, beginning with `what`, where the content belongs to another model."""
        model.identity.require(self.fingerprint, what)


def seal(arrays: Mapping[str, np.ndarray], identity: Identity, details: object = None) -> bytes:
    """A safetensors file of arrays and details, a JSON value, with fingerprint and a checksum over all three."""
    # What is read back is what JSON makes of it; numbers may be numpy's.
    details = json.loads(json.dumps(details, default=lambda number: number.item()))
    fingerprint = dataclasses.asdict(identity.fingerprint)
    record: dict[str, object] = {"fingerprint": fingerprint, "checksum": checksum(arrays, fingerprint, details)}
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
        fingerprint, expected, details = dict(record["fingerprint"]), record["checksum"], record.get("details")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise StateError(f"{name} is no {kind} of griffinlm") from error
    if fingerprint.get("format_version") != FORMAT_VERSION:
        version = fingerprint.get("format_version")
        raise StateError(f"{kind} {name} has format version {version!r}; this program reads {FORMAT_VERSION}")
    if expected != checksum(arrays, fingerprint, details):
        raise StateError(f"{kind} {name} is damaged: its checksum does not match its content")
    # Files of before there were adapters do not name one.
    return Sealed(arrays, details, {"adapter": "", **fingerprint})


def checksum(arrays: Mapping[str, np.ndarray], fingerprint: Mapping[str, object], details: object = None) -> str:
    """SHA-256 of all three, the arrays by name with their types and shapes."""
    digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode())
    if details is not None:
        digest.update(json.dumps(details, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


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
    require_writable(path, kind)
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


def flush_entry(path: Path) -> None:
    """Brings a file, or the names that a directory holds, onto the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no directories.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_writable(path: Path, kind: str) -> None:
    """Refuses a place where no file of ours can stand; what is there already may only be a regular file.

    A device or a link would be replaced by the new file, not written through.

    Raises:
        StateError: the place is taken by something else, or its directory is missing or takes no files.
    """
    try:
        is_taken = path.is_symlink() or (path.exists() and not path.is_file())
        has_directory = path.parent.is_dir()
    except OSError as error:
        raise StateError(f"{kind} {path} cannot be written: {error.strerror}") from error
    if is_taken:
        raise StateError(f"{kind} {path} cannot be written: a directory, device or link has that name")
    if not has_directory:
        raise StateError(f"{kind} {path} cannot be written: there is no directory {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise StateError(f"{kind} {path} cannot be written: the directory {path.parent} takes no new files")


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
        raise StateError(f"{name} is no {kind} of griffinlm, or is damaged: {in_one_line(error)}") from error
