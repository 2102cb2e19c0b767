"""DeepMind's torch format: one `.pt` file, a flat table of tensors. torch is imported where a file is opened."""

import pickle
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from griffinlm.checkpoint.errors import CheckpointError, describe, reading
from griffinlm.checkpoint.tensor_source import WEIGHT_TYPES, TensorInfo
from griffinlm.config import ConfigError, ModelConfig
from griffinlm.presets import bfloat16_sqrt

if TYPE_CHECKING:
    import torch

FILE = "griffin.pt"
PREFIX = "params."
"""Stands in front of every name in files converted from Flax."""


class DeepMindFile:
    """The tensors of a `.pt` file, mapped into memory and not copied before they are read."""

    def __init__(self, file: Path) -> None:
        """Opens the file without running any code that its pickle may hold.

        Raises:
            CheckpointError: torch is not installed, the file is damaged, or it is no flat table of tensors.
        """
        torch = _torch()
        self._file = file
        with reading(file), warnings.catch_warnings():
            # torch warns of parts of itself that only a damaged file makes it use.
            warnings.simplefilter("ignore")
            try:
                values = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
            except pickle.UnpicklingError as error:
                # torch's own message advises to run the code in the file.
                raise CheckpointError(f"{file} is damaged, or holds more than tensors") from error
        self._values = _flat_table(torch, file, values)
        self.tensors = {
            name: TensorInfo(str(value.dtype).removeprefix("torch."), tuple(value.shape))
            for name, value in self._values.items()
        }

    def read(self, name: str) -> np.ndarray:
        """The values of one tensor; see `TensorSource.read`."""
        with reading(self._file):
            return _to_numpy(self._values[name])


def _flat_table(torch: Any, file: Path, values: object) -> "dict[str, torch.Tensor]":
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise CheckpointError(f"{file} holds a {type(values).__name__}; it must be a flat table of named tensors")
    for name, value in values.items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.device.type != "cpu":
            raise CheckpointError(f"{file}: {name} is a {type(value).__name__}; it must be a dense tensor")
    if values and all(name.startswith(PREFIX) for name in values):
        return {name.removeprefix(PREFIX): value for name, value in values.items()}
    return dict(values)


def write_deepmind(directory: Path, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes `griffin.pt`. torch saves a whole table at once, so all tensors are held in memory.

    Raises:
        CheckpointError: torch is not installed.
        OSError: the system refuses to write.
    """
    torch = _torch()
    table = {name: _to_torch(torch, np.ascontiguousarray(values)) for name, values in tensors}
    with (directory / FILE).open("wb") as file:
        try:
            torch.save(table, file)
        except RuntimeError as error:
            # torch complains of the unfinished file; what the system said stands behind that.
            raise OSError(describe(error.__context__ or error)) from error


def require_expressible(config: ModelConfig) -> None:
    """Refuses a model that DeepMind's code does not compute.

    Raises:
        ConfigError: names what the code lacks.
    """
    attention, recurrent = config.attention, config.recurrent
    num_heads = attention.num_heads if attention else recurrent.num_gate_blocks if recurrent else 0
    scales = (1.0, bfloat16_sqrt(config.width))
    faults = {
        "global attention": "global_attention" in config.block_kinds,
        "linears without bias": not config.use_bias,
        f"an embedding_scale of {config.embedding_scale}": config.embedding_scale not in scales,
        f"a norm_epsilon of {config.norm_epsilon}": config.norm_epsilon != 1e-6,
        "layers that share parameters": config.recursion is not None,
    }
    if recurrent is not None:
        faults[f"{recurrent.num_conv_taps} conv taps"] = recurrent.num_conv_taps != 4
        faults[f"{recurrent.num_gate_blocks} gate blocks beside {num_heads} heads"] = (
            recurrent.num_gate_blocks != num_heads
        )
    if attention is not None:
        faults[f"{num_heads} heads of {attention.head_size} at width {config.width}"] = (
            num_heads * attention.head_size != config.width
        )
        faults[f"a rope_fraction of {attention.rope_fraction}"] = attention.rope_fraction != 0.5
        faults[f"a rope_wavelength of {attention.rope_wavelength}"] = attention.rope_wavelength != 10_000.0
    found = [what for what, is_fault in faults.items() if is_fault]
    if found:
        raise ConfigError(f"DeepMind's code cannot express this model: {', '.join(found)}")


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            "DeepMind's .pt files need PyTorch, which is not installed", hint="pip install griffinlm[torch]"
        ) from None
    return torch


def _to_numpy(value: "torch.Tensor") -> np.ndarray:
    import torch

    if value.dtype == torch.bfloat16:
        # numpy has no bfloat16 of torch's; the bits are the same.
        return value.detach().view(torch.int16).numpy().view(WEIGHT_TYPES["bfloat16"])
    return value.detach().numpy()


def _to_torch(torch: Any, values: np.ndarray) -> "torch.Tensor":
    if values.dtype == WEIGHT_TYPES["bfloat16"]:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)
