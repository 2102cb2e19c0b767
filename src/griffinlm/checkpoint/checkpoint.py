"""A checkpoint of any format, seen as our configuration and our named parameters."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from griffinlm.checkpoint.config_file import CONFIG_FILE, OUR_MODEL_TYPE, ConfigFile, read_config_file
from griffinlm.checkpoint.deepmind import DeepMindFile
from griffinlm.checkpoint.errors import CheckpointError, faults_error, reading
from griffinlm.checkpoint.names import TIED_HEAD, Entry, TableName, entries
from griffinlm.checkpoint.orbax import OrbaxDirectory, orbax_root
from griffinlm.checkpoint.store import INDEX_FILE, SINGLE_FILE, SafetensorsDirectory
from griffinlm.checkpoint.tensor_source import (
    WEIGHT_TYPES,
    WEIGHT_TYPES_TEXT,
    TensorInfo,
    TensorSource,
    is_finite,
    raw_bytes,
)
from griffinlm.checkpoint.tokenizer_files import has_tokenizer
from griffinlm.config import ModelConfig

CheckpointFormat = Literal["griffinlm", "huggingface", "deepmind", "flax"]

EMBEDDING = "embedding.weight"


class Checkpoint:
    """An opened checkpoint whose tensors are exactly those of its configuration; values are read on demand."""

    def __init__(
        self, path: Path, format: CheckpointFormat, config: ModelConfig, source: TensorSource, table: TableName
    ) -> None:
        """Holds every tensor of `source` against the table of names.

        Raises:
            CheckpointError: tensors are missing, unexpected, of the wrong shape or type; all of them in `.faults`.
        """
        self.path, self.format, self.config = path, format, config
        directory = path if path.is_dir() else path.parent
        self.tokenizer_directory: Path | None = directory if has_tokenizer(directory) else None
        self._source = source
        self._has_head = table in ("recurrent_gemma", "gemma") and TIED_HEAD in source.tensors
        expected = entries(table, config)
        faults = _faults(expected, self._has_head, source)
        if faults:
            raise faults_error(path, faults)
        self._entry_of = {name: entry for entry in expected for name in entry.ours}
        self._digest: str | None = None

    @property
    def types(self) -> tuple[str, ...]:
        """The element types of the tensors, each once."""
        return tuple(sorted({self._source.tensors[entry.theirs].dtype for entry in self._entry_of.values()}))

    def tensor(self, name: str) -> np.ndarray:
        """One of our parameters, in our shape, C-contiguous, in the type of the file (bfloat16 by ml_dtypes).

        Raises:
            CheckpointError: the file is damaged, or the parameter holds NaN or infinity, or a copy of the tied head is
                not equal to the embedding.
        """
        entry = self._entry_of[name]
        values = np.ascontiguousarray(entry.layout.unpack(self._source.read(entry.theirs))[entry.ours.index(name)])
        if not is_finite(values):
            raise CheckpointError(f"{self.path}: {entry.theirs} holds NaN or infinity")
        if name == EMBEDDING and self._has_head:
            head = self._source.read(TIED_HEAD)
            if head.dtype != values.dtype or raw_bytes(head) != raw_bytes(values):
                raise CheckpointError(f"{self.path}: {TIED_HEAD} differs from {entry.theirs}; the head must be tied")
        return values

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every parameter in the order of `config.parameter_shapes()`, read one by one; raises as `tensor` does."""
        return ((name, self.tensor(name)) for name in self.config.parameter_shapes())

    def digest(self) -> str:
        """SHA-256 over our names, types, shapes and bytes in our order; the same for the same weights in every format.

        Reads every tensor at the first call; raises as `tensor` does.
        """
        if self._digest is None:
            state = hashlib.sha256()
            for name, values in self.tensors():
                state.update(f"{name} {values.dtype.name} {list(values.shape)}\n".encode())
                state.update(raw_bytes(values))
            self._digest = state.hexdigest()
        return self._digest


def open_checkpoint(path: Path | str, config: ModelConfig | None = None) -> Checkpoint:
    """Opens a directory of safetensors (ours or Hugging Face's), a `.pt` of DeepMind's, or a Flax directory.

    `config` is for the formats that do not store one, which are the last two; nothing is inferred from shapes.

    Raises:
        CheckpointError: no checkpoint is at `path`, its configuration is missing or contradicts `config`, or tensors
            are missing, unexpected, of the wrong shape or type.
    """
    path = Path(path)
    with reading(path):
        container = _find(path)
        file = (path if path.is_dir() else path.parent) / CONFIG_FILE
        stored = read_config_file(file) if file.is_file() else None
        config = _one_config(path, config, stored)
        if container.format != "safetensors":
            source = DeepMindFile(container.path) if container.format == "deepmind" else OrbaxDirectory(container.path)
            return Checkpoint(path, container.format, config, source, container.format)
        if stored is None:
            raise CheckpointError(f"{path} has no {CONFIG_FILE}")
        table: TableName = stored.model_type
        format: CheckpointFormat = "griffinlm" if table == OUR_MODEL_TYPE else "huggingface"
        return Checkpoint(path, format, config, SafetensorsDirectory(container.path), table)


class _Container(NamedTuple):
    format: Literal["safetensors", "deepmind", "flax"]
    path: Path


def _find(path: Path) -> _Container:
    if path.is_file():
        if path.suffix in (".pt", ".pth"):
            return _Container("deepmind", path)
        raise CheckpointError(f"{path} is no checkpoint: a file must be a .pt of DeepMind's; others are directories")
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist")
    if (path / SINGLE_FILE).is_file() or (path / INDEX_FILE).is_file():
        return _Container("safetensors", path)
    torch_files = sorted(path.glob("*.pt"))
    if len(torch_files) == 1:
        return _Container("deepmind", torch_files[0])
    if torch_files:
        names = ", ".join(file.name for file in torch_files)
        raise CheckpointError(f"{path} holds several .pt files: {names}", hint="give the path of one of them")
    root = orbax_root(path)
    if root is not None:
        return _Container("flax", root)
    raise CheckpointError(f"{path} holds no {SINGLE_FILE}, no {INDEX_FILE}, no .pt file and no Flax checkpoint")


def _one_config(path: Path, given: ModelConfig | None, stored: ConfigFile | None) -> ModelConfig:
    if stored is None and given is None:
        raise CheckpointError(
            f"{path} does not say which model it is: it has no {CONFIG_FILE}", hint="give --preset or --config FILE"
        )
    if stored is None or given is None:
        config = given or (stored and stored.config)
        assert config is not None
        return config
    ours, theirs = given.to_dict(), stored.config.to_dict()
    different = [name for name in ours if ours[name] != theirs[name]]
    if different:
        raise CheckpointError(f"{path}: its {CONFIG_FILE} and the configuration given differ in {', '.join(different)}")
    return given


def _faults(expected: tuple[Entry, ...], has_head: bool, source: TensorSource) -> list[str]:
    """Everything wrong with the names, shapes and types, missing ones first."""
    wanted = {entry.theirs: entry.shape for entry in expected}
    if has_head:
        wanted[TIED_HEAD] = next(entry.shape for entry in expected if EMBEDDING in entry.ours)
    found = source.tensors
    missing = [
        f"{name} is missing, expected {list(shape)} {WEIGHT_TYPES_TEXT}"
        for name, shape in wanted.items()
        if name not in found
    ]
    unexpected = [f"{name} is unexpected, found {info}" for name, info in found.items() if name not in wanted]
    different = [
        f"{name} is {info}, expected {list(shape)} {WEIGHT_TYPES_TEXT}"
        for name, shape in wanted.items()
        if (info := found.get(name)) is not None and not _fits(info, shape)
    ]
    return missing + unexpected + different


def _fits(info: TensorInfo, shape: tuple[int, ...]) -> bool:
    return info.dtype in WEIGHT_TYPES and info.shape == shape
