"""What a program that runs an exported model must know of it, as one table."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from griffinlm.checkpoint import Checkpoint, open_checkpoint
from griffinlm.edge.scan import MAX_CHUNK_TOKENS
from griffinlm.edge.slots import RING_STEP_SLOTS
from griffinlm.errors import GriffinError
from griffinlm.language_model import LanguageModel
from griffinlm.loading import find_model, load, with_weights
from griffinlm.state import ArraySpec, attention_bytes_per_token, block_layout, is_ring


class ExportError(GriffinError):
    """A model that cannot be exported as asked, or something missing that an export needs."""


class Exported(NamedTuple):
    """A model about to be exported."""

    name: str
    model: LanguageModel
    checkpoint: Checkpoint
    """With the weights that were asked for."""


def open_exported(path_or_name: str, weights: str | None, window_dtype: str) -> Exported:
    """The model with its weights; `weights` and `window_dtype` are those of `griffinlm.load`.

    Raises:
        GriffinError: as `griffinlm.load`; or the state has no fixed size, or no program outside computes the model.
    """
    source = find_model(path_or_name)
    checkpoint = with_weights(open_checkpoint(source), weights)
    if checkpoint.config.needs_capacity:
        raise ExportError(f"{source} has global attention; only models whose state has a fixed size are exported")
    if checkpoint.config.skips:
        raise ExportError(f"{source} skips loops; only models that read every token in every layer are exported")
    model = load(path_or_name, "onnx", weights=weights, window_dtype=window_dtype)
    return Exported(os.path.basename(os.path.abspath(source)), model, checkpoint)


def describe(exported: Exported) -> dict[str, Any]:
    """Fingerprint, sizes, the state's arrays, and how a caller cuts tokens and rings."""
    name, model, checkpoint = exported
    config = model.config
    layout = block_layout(config, 1, None, model.window_dtype, model.precision)
    quantization = checkpoint.quantization
    num_tokens = None if checkpoint.tokenizer_directory is None else model.tokenizer.vocab_size
    return {
        "name": name,
        "weights_format": "float32" if quantization is None else quantization.recipe.default.name,
        "fingerprint": dataclasses.asdict(model.identity.fingerprint),
        "vocab_size": config.vocab_size,
        "num_choices": config.vocab_size if num_tokens is None else num_tokens,
        "max_chunk_tokens": MAX_CHUNK_TOKENS,
        "ring_step_slots": RING_STEP_SLOTS,
        "state": _state(layout),
        "state_bytes": model.new_state().nbytes,
        "attention_bytes_per_token": attention_bytes_per_token(config, model.window_dtype),
    }


def _state(layout: Mapping[str, ArraySpec]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "dtype": spec.dtype.name,
            "shape": list(spec.shape),
            "is_ring": is_ring(name),
        }
        for name, spec in layout.items()
    ]
