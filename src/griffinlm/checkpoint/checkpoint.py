"""A checkpoint of any format, seen as our configuration and our named parameters."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from griffinlm.checkpoint.config_file import CONFIG_FILE, OUR_MODEL_TYPE, ConfigFile, read_config_file
from griffinlm.checkpoint.deepmind import DeepMindFile
from griffinlm.checkpoint.errors import CheckpointError, faults_error, reading
from griffinlm.checkpoint.names import SAME, TIED_HEAD, Entry, TableName, entries
from griffinlm.checkpoint.orbax import OrbaxDirectory, orbax_root
from griffinlm.checkpoint.quantization_record import Quantization
from griffinlm.checkpoint.quantized import DequantizedTensors, stored_tensors
from griffinlm.checkpoint.store import INDEX_FILE, SINGLE_FILE, SafetensorsDirectory
from griffinlm.checkpoint.tensor_source import (
    ExpectedTensor,
    StoredTensor,
    TensorSource,
    is_finite,
    num_bytes,
    raw_bytes,
)
from griffinlm.checkpoint.tokenizer_files import has_tokenizer
from griffinlm.config import EMBEDDING, ModelConfig
from griffinlm.quantization import Recipe

CheckpointFormat = Literal["griffinlm", "huggingface", "deepmind", "flax"]


class Checkpoint:
    """An opened checkpoint whose tensors are exactly those of its configuration; values are read on demand."""

    def __init__(
        self,
        path: Path,
        format: CheckpointFormat,
        config: ModelConfig,
        source: TensorSource,
        table: TableName,
        quantization: Quantization | None = None,
    ) -> None:
        """Holds every tensor of `source` against the table of names, or against the recipe of a quantized checkpoint.

        Raises:
            CheckpointError: tensors are missing, unexpected, of the wrong shape or type; all of them in `.faults`.
        """
        self.path, self.format, self.config, self.quantization = path, format, config, quantization
        directory = path if path.is_dir() else path.parent
        self.tokenizer_directory: Path | None = directory if has_tokenizer(directory) else None
        self._files = source
        self._has_head = table in ("recurrent_gemma", "gemma") and TIED_HEAD in source.tensors
        expected = entries(table, config)
        faults = _faults(_expected_tensors(expected, self._has_head, config, quantization), source)
        if faults:
            raise faults_error(path, faults)
        self._source: TensorSource = source
        if quantization is not None:
            self._source = DequantizedTensors(path, source, config, quantization.recipe)
        self._entry_of = {name: entry for entry in expected for name in entry.ours}
        self._stored_as = {name: entry.theirs for name, entry in self._entry_of.items() if entry.layout is SAME}
        if quantization is not None:
            self._stored_as = {name: name for name in source.tensors}
        self._digest: str | None = None
        self.keep_alive: object = None
        """Whatever must live as long as the checkpoint, such as a temporary directory that holds its files."""

    @property
    def types(self) -> tuple[str, ...]:
        """The element types of the parameters, each once; for a quantized one the name of its format."""
        return tuple(sorted({self._source.tensors[entry.theirs].dtype for entry in self._entry_of.values()}))

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors as they are stored, scales included."""
        return sum(map(num_bytes, self._files.tensors.values()))

    def tensor(self, name: str) -> np.ndarray:
        """One of our parameters, in our shape, C-contiguous, in the type of the file (bfloat16 by ml_dtypes).

        A quantized parameter is dequantized to float32.

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

        That of a quantized checkpoint is over its recipe and the tensors as they are stored. Reads every tensor at the
        first call; raises as `tensor` does.
        """
        if self._digest is None:
            digest = WeightsDigest()
            tensors = self.tensors()
            if isinstance(self._source, DequantizedTensors):
                digest.add_recipe(self._source.recipe)
                tensors = self._source.stored()
            for name, values in tensors:
                digest.add(name, values)
            self._digest = digest.hexdigest()
        return self._digest

    def stored(self, name: str) -> StoredTensor | None:
        """Where the bytes of a parameter, or of the `.scales` of a quantized one, lie in a safetensors file.

        None where the checkpoint has no such tensor, or keeps it in another layout or container.
        """
        theirs = self._stored_as.get(name)
        if theirs is None or not isinstance(self._files, SafetensorsDirectory):
            return None
        return self._files.locate(theirs)

    def verify(self) -> None:
        """Holds the files of a quantized checkpoint against their checksums; others have none.

        Raises:
            CheckpointError: a file is damaged, or cannot be read.
        """
        if self.quantization is None:
            return
        for name, expected in self.quantization.checksums.items():
            if file_checksum(self.path / name) != expected:
                raise CheckpointError(
                    f"{self.path / name} is damaged: its checksum differs from that in {CONFIG_FILE}",
                    hint="quantize the model again",
                )


class WeightsDigest:
    """SHA-256 of weights, tensor by tensor."""

    def __init__(self) -> None:
        self._state = hashlib.sha256()

    def add(self, name: str, values: np.ndarray) -> None:
        self._state.update(f"{name} {values.dtype.name} {list(values.shape)}\n".encode())
        self._state.update(raw_bytes(values))

    def add_recipe(self, recipe: Recipe) -> None:
        self._state.update(f"{json.dumps(recipe.to_dict())}\n".encode())

    def hexdigest(self) -> str:
        return self._state.hexdigest()


def file_checksum(file: Path) -> str:
    """SHA-256 of a file.

    Raises:
        CheckpointError: it cannot be read.
    """
    with reading(file), open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


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
        directory = SafetensorsDirectory(container.path)
        _check_files(path, directory, stored.quantization)
        return Checkpoint(path, format, config, directory, table, stored.quantization)


class _Container(NamedTuple):
    format: Literal["safetensors", "deepmind", "flax"]
    path: Path


def _find(path: Path) -> _Container:
    if path.is_file():
        if path.suffix in (".pt", ".pth"):
            return _Container("deepmind", path)
        raise CheckpointError(f"{path} is no checkpoint: a file must be a .pt of DeepMind's; others are directories")
    if not path.is_dir():
        found = "is neither a file nor a directory" if path.exists() else "does not exist"
        raise CheckpointError(f"{path} {found}")
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
    different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if different:
        raise CheckpointError(f"{path}: its {CONFIG_FILE} and the configuration given differ in {', '.join(different)}")
    return given


def _check_files(path: Path, directory: SafetensorsDirectory, quantization: Quantization | None) -> None:
    """A quantized checkpoint has a checksum for each of its files, and no others."""
    if quantization is not None and quantization.checksums.keys() != {file.name for file in directory.files}:
        raise CheckpointError(f"{path}: the checksums in {CONFIG_FILE} do not name the files that hold the weights")


def _expected_tensors(
    expected: tuple[Entry, ...], has_head: bool, config: ModelConfig, quantization: Quantization | None
) -> dict[str, ExpectedTensor]:
    if quantization is not None:
        return stored_tensors(config, quantization.recipe)
    wanted = {entry.theirs: ExpectedTensor(entry.shape) for entry in expected}
    if has_head:
        wanted[TIED_HEAD] = next(ExpectedTensor(entry.shape) for entry in expected if EMBEDDING in entry.ours)
    return wanted


def _faults(wanted: Mapping[str, ExpectedTensor], source: TensorSource) -> list[str]:
    """Everything wrong with the names, shapes and types, missing ones first."""
    found = source.tensors
    missing = [f"{name} is missing, expected {tensor}" for name, tensor in wanted.items() if name not in found]
    unexpected = [f"{name} is unexpected, found {info}" for name, info in found.items() if name not in wanted]
    different = [
        f"{name} is {info}, expected {tensor}"
        for name, tensor in wanted.items()
        if (info := found.get(name)) is not None and not tensor.fits(info)
    ]
    return missing + unexpected + different
