"""Bytes that a step must read from memory, whatever computes it."""

import math

import numpy as np

from griffinlm.checkpoint import SCALES, Checkpoint
from griffinlm.config import EMBEDDING, ModelConfig
from griffinlm.executor import Engine
from griffinlm.state import ARRAY_TYPES, block_layout, is_ring


def weight_bytes(checkpoint: Checkpoint, engine: Engine, is_packed: bool) -> int:
    """Bytes of all parameters as a step reads them.

    The embedding is the head, so it counts once; what layers share counts in each of them.

    Args:
        is_packed: whether the engine multiplies with quantized weights as they are stored.
    """
    config = checkpoint.config
    if is_packed and checkpoint.quantization is not None:
        return sum(_stored_bytes(checkpoint, config.parameter_at(place)) for place in config.place_shapes())
    return sum(map(math.prod, config.place_shapes().values())) * ARRAY_TYPES[engine.precision].itemsize


def _stored_bytes(checkpoint: Checkpoint, name: str) -> int:
    """Bytes of a parameter in the files of a quantized checkpoint, scales included."""
    stored = (checkpoint.stored(part) for part in (name, name + SCALES))
    return sum(part.num_bytes for part in stored if part is not None)


def embedding_row_bytes(checkpoint: Checkpoint, engine: Engine, is_packed: bool) -> int:
    """Bytes of one token's row of the embedding; `is_packed` as in `weight_bytes`."""
    config = checkpoint.config
    if is_packed and checkpoint.quantization is not None:
        format = checkpoint.quantization.recipe.format_of(EMBEDDING, config.parameter_shapes()[EMBEDDING])
        if format.is_quantized:
            arrays = format.arrays(1, config.width)
            return sum(math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in arrays)
    return config.width * ARRAY_TYPES[engine.precision].itemsize


def state_read_bytes(config: ModelConfig, engine: Engine, position: int) -> int:
    """Bytes of one row's state that hold something after `position` tokens: of rings only the slots in use."""
    capacity = max(1, position) if config.needs_capacity else None
    total = 0
    for name, array in block_layout(config, 1, capacity, engine.window_dtype, engine.precision).items():
        num_slots = array.shape[1]
        total += array.nbytes * min(position, num_slots) // num_slots if is_ring(name) else array.nbytes
    return total
