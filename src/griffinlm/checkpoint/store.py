"""Directories of safetensors: one file, or shards with an index."""

import json
import os
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  (gives numpy the type that safetensors asks of it for bfloat16)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from griffinlm.checkpoint.config_file import read_json_table
from griffinlm.checkpoint.errors import CheckpointError, faults_error, reading
from griffinlm.checkpoint.tensor_source import StoredTensor, TensorInfo

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_BYTES = 2 << 30

_TYPE_NAMES = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint"}


class SafetensorsDirectory:
    """The tensors of a directory, read one by one. Headers are read at once, so damage to one shows on opening."""

    def __init__(self, directory: Path) -> None:
        """Opens `model.safetensors`, or the shards of its index.

        Raises:
            CheckpointError: a file is missing or damaged, or the index and the shards disagree.
        """
        # Tensors are read long after opening, when the working directory may be another.
        directory = directory.absolute()
        self.tensors: dict[str, TensorInfo] = {}
        self._places: dict[str, StoredTensor] = {}
        self._versions: dict[Path, tuple[int, ...]] = {}
        index_file = directory / INDEX_FILE
        if not index_file.is_file():
            self._add(directory / SINGLE_FILE)
            return
        placed = _weight_map(index_file)
        missing = [name for name in sorted(set(placed.values())) if not (directory / name).is_file()]
        if missing:
            raise faults_error(index_file, [f"shard {name} is missing" for name in missing])
        for name in sorted(set(placed.values())):
            self._add(directory / name)
        file_of = {tensor: place.file.name for tensor, place in self._places.items()}
        misplaced = [f"{tensor} is not in {file}" for tensor, file in placed.items() if file_of.get(tensor) != file]
        unlisted = [f"{t} is in {file}, but not in the index" for t, file in file_of.items() if t not in placed]
        if misplaced or unlisted:
            raise faults_error(index_file, misplaced + unlisted)

    def _add(self, file: Path) -> None:
        with reading(file), safe_open(file, framework="numpy") as opened:
            self._versions[file] = _version(file)
            offsets = _data_offsets(file)
            for name in opened.keys():  # noqa: SIM118  (an open file is no mapping)
                if name in self.tensors:
                    raise CheckpointError(f"{name} is both in {self._places[name].file.name} and in {file.name}")
                part = opened.get_slice(name)
                info = TensorInfo(type_name(part.get_dtype()), tuple(part.get_shape()))
                self.tensors[name] = info
                self._places[name] = StoredTensor(file, offsets[name], info.dtype, info.shape)

    @property
    def files(self) -> frozenset[Path]:
        """The files that hold the tensors."""
        return frozenset(place.file for place in self._places.values())

    def locate(self, name: str) -> StoredTensor:
        """Where the bytes of one of `tensors` lie."""
        return self._places[name]

    def read(self, name: str) -> np.ndarray:
        """The values of one tensor; see `TensorSource.read`.

        Raises:
            CheckpointError: also where the file was changed or replaced after it was opened.
        """
        place = self._places[name]
        with reading(place.file):
            if _version(place.file) != self._versions[place.file]:
                raise CheckpointError(f"{place.file} has changed since it was opened", hint="load the model again")
            # safetensors would copy out of a mapping of the file, whose pages count as memory once they are touched.
            return place.read()


def _version(file: Path) -> tuple[int, ...]:
    """What differs between a file and what was later written over it or put in its place."""
    status = os.stat(file)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _data_offsets(file: Path) -> dict[str, int]:
    """Where the bytes of every tensor begin; the length of the header, the header as JSON, and the bytes follow."""
    with open(file, "rb") as opened:
        (header_bytes,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(header_bytes))
    start = 8 + header_bytes
    return {name: start + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def _weight_map(index_file: Path) -> dict[str, str]:
    placed = read_json_table(index_file).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(file, str) for file in placed.values()):
        raise CheckpointError(f"{index_file}: weight_map is missing or no table of tensor names and file names")
    for file in placed.values():
        # A name that leads out of the directory would let an index open any file of the machine.
        if not re.fullmatch(r"[\w.-]+\.safetensors", file):
            raise CheckpointError(f"{index_file}: shard {file!r} is no plain name of a .safetensors file")
    return placed


def type_name(name: str) -> str:
    """`bfloat16` for the header's `BF16`; a name that does not follow this form as it is."""
    kind = re.fullmatch(r"([A-Z]+)(\d+)", name)
    return _TYPE_NAMES.get(kind[1], kind[1]) + kind[2] if kind else name


def write_safetensors(
    directory: Path, tensors: Iterable[tuple[str, np.ndarray]], metadata: Mapping[str, str], shard_bytes: int
) -> None:
    """Writes the tensors as they come; at most `shard_bytes`, or one larger tensor, are held in memory.

    Raises:
        OSError: the system refuses to write.
    """
    shards: list[tuple[Path, list[str]]] = []
    held: dict[str, np.ndarray] = {}
    num_bytes = total_bytes = 0

    def flush() -> None:
        file = directory / f"{len(shards)}.safetensors"
        try:
            save_file(held, file, dict(metadata))
        except SafetensorError as error:
            raise OSError(str(error)) from error
        shards.append((file, list(held)))
        held.clear()

    for name, values in tensors:
        if held and num_bytes + values.nbytes > shard_bytes:
            flush()
            num_bytes = 0
        # The writer copies memory as it lies, so a transposed view must be laid out first.
        held[name] = np.ascontiguousarray(values)
        num_bytes += values.nbytes
        total_bytes += values.nbytes
    flush()

    if len(shards) == 1:
        shards[0][0].rename(directory / SINGLE_FILE)
        return
    placed: dict[str, str] = {}
    for number, (file, names) in enumerate(shards, start=1):
        final = file.with_name(f"model-{number:05}-of-{len(shards):05}.safetensors")
        file.rename(final)
        placed |= dict.fromkeys(names, final.name)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": placed}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
