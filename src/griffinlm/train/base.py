"""The model that a run begins from, and what TRL's trainers need around it."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import disable_progress_bars
from safetensors import SafetensorError
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from griffinlm.checkpoint import Checkpoint, open_checkpoint, write_checkpoint
from griffinlm.checkpoint.errors import describe
from griffinlm.loading import find_model
from griffinlm.model.state import to_array
from griffinlm.text import Tokenizer
from griffinlm.train.errors import TrainError

TRAINABLE = ("griffinlm", "huggingface")
"""Formats of a base."""


class Base(NamedTuple):
    """A model with a tokenizer."""

    checkpoint: Checkpoint
    tokenizer: Tokenizer

    @property
    def tokenizer_directory(self) -> Path:
        assert self.checkpoint.tokenizer_directory is not None
        return self.checkpoint.tokenizer_directory


class TuningOutcome(NamedTuple):
    """What a run has come to."""

    result: Path
    """A model directory, an adapter directory or the file of a tuned state."""
    step: int
    figures: dict[str, float]
    """The last value of everything that was logged, and counts of rows."""


def open_base(model: str) -> Base:
    """The model of that name or directory.

    Raises:
        GriffinError: it cannot be read, is of a format that transformers does not read, has no tokenizer of its size,
            or its weights are quantized.
    """
    checkpoint = open_checkpoint(find_model(model))
    if checkpoint.format not in TRAINABLE:
        raise TrainError(
            f"{checkpoint.path} has the format {checkpoint.format}; what is tuned must have {' or '.join(TRAINABLE)}",
            hint="griffin convert SRC DST --to FORMAT",
        )
    if checkpoint.tokenizer_directory is None:
        raise TrainError(f"{checkpoint.path} has no tokenizer, so it takes no conversations")
    tokenizer = Tokenizer.from_directory(checkpoint.tokenizer_directory)
    if tokenizer.vocab_size > checkpoint.config.vocab_size:
        size = checkpoint.config.vocab_size
        raise TrainError(f"the tokenizer has {tokenizer.vocab_size} tokens; the model's vocabulary has {size}")
    if checkpoint.quantization is not None:
        raise TrainError(f"{checkpoint.path} is quantized; what is tuned must have float weights")
    return Base(checkpoint, tokenizer)


def tokenizer_for_trl(directory: Path) -> Any:
    """TRL asks it for the padding token alone."""
    try:
        return AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError, ImportError) as error:
        raise TrainError(f"transformers cannot read the tokenizer of {directory}: {describe(error)}") from error


def prepare_libraries(num_devices: int) -> None:
    """No bars where nobody sees them, and one device a process.

    Raises:
        TrainError: this process sees several.
    """
    if not sys.stderr.isatty():
        disable_progress_bars()
        transformers_logging.disable_progress_bar()
    if num_devices > 1:
        raise TrainError(
            f"one process sees {num_devices} GPUs; it trains on one", hint="torchrun, or CUDA_VISIBLE_DEVICES=0"
        )


@contextlib.contextmanager
def as_train_error(output: Path) -> Iterator[None]:
    """Turns what the libraries raise where a file of the run cannot be written or read into a TrainError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TrainError(f"cannot write or read {output}: {describe(error)}") from error


def write_model(base: Checkpoint, model: Any, result: Path) -> None:
    """Writes trained weights as a model directory of the base's format, with its tokenizer."""

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        return ((name, to_array(parameter)) for name, parameter in model.base_model.named_parameters())

    format = "huggingface" if base.format == "huggingface" else "griffinlm"
    write_checkpoint(base.config, tensors(), result, format, None, base.tokenizer_directory)
