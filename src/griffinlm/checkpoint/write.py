"""Writing a checkpoint in any format from our named parameters."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from griffinlm.checkpoint.config_file import CONFIG_FILE, our_fields
from griffinlm.checkpoint.deepmind import require_expressible, write_deepmind
from griffinlm.checkpoint.errors import CheckpointError, faults_error
from griffinlm.checkpoint.huggingface_config import to_huggingface
from griffinlm.checkpoint.names import Entry, TableName, entries
from griffinlm.checkpoint.new_directory import new_directory
from griffinlm.checkpoint.store import SHARD_BYTES, write_safetensors
from griffinlm.checkpoint.tensor_source import WEIGHT_TYPES, WEIGHT_TYPES_TEXT, is_finite
from griffinlm.checkpoint.tokenizer_files import control_token_ids, copy_tokenizer
from griffinlm.config import ConfigError, ModelConfig

WritableFormat = Literal["griffinlm", "huggingface", "deepmind"]


def write_checkpoint(
    config: ModelConfig,
    tensors: Iterable[tuple[str, np.ndarray]],
    destination: Path | str,
    format: WritableFormat,
    dtype: str | None = None,
    tokenizer_directory: Path | str | None = None,
    shard_bytes: int = SHARD_BYTES,
    write_rest: Callable[[Path], None] | None = None,
) -> None:
    """Writes a new directory with the weights, a config.json and the tokenizer's files; whole, or not at all.

    `tensors` are pairs of our names and values, each parameter once, in any order. The safetensors formats hold
    `shard_bytes` of them in memory, `deepmind` all. `dtype` (float32, bfloat16 or float16) casts every tensor; without
    it each keeps its own type. `write_rest` writes further files into the directory when all tensors have passed.

    Raises:
        CheckpointError: the format cannot express the model, tensors are missing, unknown, of the wrong shape or type,
            or not finite, the destination is not free, or the system refuses to write.
    """
    destination = Path(destination)
    tokenizer = None if tokenizer_directory is None else Path(tokenizer_directory)
    if format not in get_args(WritableFormat):
        raise CheckpointError(f"format is {format!r}; allowed are {', '.join(get_args(WritableFormat))}")
    if dtype is not None and dtype not in WEIGHT_TYPES:
        raise CheckpointError(f"dtype is {dtype!r}; allowed are {WEIGHT_TYPES_TEXT}")
    table, fields = _described(config, format)
    expected = entries(table, config)
    types: set[str] = set()
    with new_directory(destination) as directory:
        packed = _packed(expected, _checked(config, tensors, dtype, types))
        if format == "deepmind":
            write_deepmind(directory, packed)
        else:
            write_safetensors(directory, packed, {"format": "pt"}, shard_bytes)
        if tokenizer is not None:
            copy_tokenizer(tokenizer, directory)
        if write_rest is not None:
            write_rest(directory)
        if format == "huggingface":
            fields |= control_token_ids(tokenizer)
            # transformers loads in this type; weights of several types have no name for it.
            fields |= {"torch_dtype": next(iter(types))} if len(types) == 1 else {}
        (directory / CONFIG_FILE).write_text(json.dumps(fields, indent=2) + "\n")


def _described(config: ModelConfig, format: WritableFormat) -> tuple[TableName, dict[str, Any]]:
    """The table of names and the fields of config.json."""
    try:
        if format == "huggingface":
            fields = to_huggingface(config)
            return fields["model_type"], fields
        if format == "deepmind":
            require_expressible(config)
            return "deepmind", our_fields(config)
    except ConfigError as error:
        raise CheckpointError(str(error), hint="the format griffinlm holds every model") from error
    return "griffinlm", our_fields(config)


def _checked(
    config: ModelConfig, tensors: Iterable[tuple[str, np.ndarray]], dtype: str | None, types: set[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors as they are to be stored; their types are added to `types`."""
    shapes = config.parameter_shapes()
    seen: set[str] = set()
    for name, values in tensors:
        if name not in shapes or name in seen:
            raise CheckpointError(f"{name} is {'given twice' if name in seen else 'no parameter of this model'}")
        if values.dtype.name not in WEIGHT_TYPES or values.shape != shapes[name]:
            raise CheckpointError(
                f"{name} is {list(values.shape)} {values.dtype.name}, expected {list(shapes[name])} {WEIGHT_TYPES_TEXT}"
            )
        if dtype is not None:
            # A value past the type's largest becomes infinite, which is refused below.
            with np.errstate(over="ignore"):
                values = values.astype(WEIGHT_TYPES[dtype], copy=False)
        if not is_finite(values):
            raise CheckpointError(f"{name} holds NaN or infinity" + (f" as {dtype}" if dtype else ""))
        seen.add(name)
        types.add(values.dtype.name)
        yield name, values
    missing = [f"{name} is missing, expected {list(shape)}" for name, shape in shapes.items() if name not in seen]
    if missing:
        raise faults_error("the model to be written", missing)


def _packed(expected: tuple[Entry, ...], tensors: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors in the format's names and layouts, each as soon as all of its parts have come."""
    entry_of = {name: entry for entry in expected for name in entry.ours}
    parts: dict[str, np.ndarray] = {}
    for name, values in tensors:
        parts[name] = values
        entry = entry_of[name]
        if all(part in parts for part in entry.ours):
            yield entry.theirs, entry.layout.pack(*(parts.pop(part) for part in entry.ours))
