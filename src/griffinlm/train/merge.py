"""A low-rank adapter added to the weights of its model, for good."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from griffinlm.checkpoint import open_checkpoint, write_checkpoint
from griffinlm.checkpoint.adapter import LowRank, read_low_rank
from griffinlm.loading import find_model
from griffinlm.progress import progress
from griffinlm.train.errors import TrainError


def merge(base: str, adapter: Path, destination: Path) -> None:
    """Writes the model W + up down of every matrix that the adapter has a term for, in the base's types and format.

    Parameters go through memory one by one; sums are float32.

    Raises:
        GriffinError: there is no such model or adapter, it is another model's, the weights are quantized or shared
            by layers, or the destination is not free.
    """
    checkpoint = open_checkpoint(find_model(base))
    if checkpoint.quantization is not None:
        raise TrainError(
            f"{checkpoint.path} is quantized; a merged weight would not be on its grid",
            hint="merge into the model that was quantized, or load the adapter beside it",
        )
    if checkpoint.config.recursion is not None:
        raise TrainError(
            f"{checkpoint.path} has layers that share matrices; an adapter differs from layer to layer",
            hint="load the adapter beside the model",
        )
    terms = read_low_rank(adapter, checkpoint.config).terms
    names = checkpoint.config.parameter_shapes()

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, values in progress(checkpoint.tensors(), "merging", len(names)):
            yield name, merged(values, terms[name]) if name in terms else values

    format = "huggingface" if checkpoint.format == "huggingface" else "griffinlm"
    write_checkpoint(checkpoint.config, tensors(), destination, format, None, checkpoint.tokenizer_directory)


def merged(values: np.ndarray, term: LowRank) -> np.ndarray:
    """W [N, K] + up down; of a gate W [h, b_in, b_out], whose term is of the transposed blocks, W + down^T up^T."""
    added = term.up @ term.down
    added = added if values.ndim == 2 else added.swapaxes(1, 2)
    return (values.astype(np.float32) + added).astype(values.dtype)
