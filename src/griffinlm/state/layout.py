"""The arrays of a state: names, shapes, types, and what numbers can stand in them."""

from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from griffinlm.config import ModelConfig
from griffinlm.state.identity import StateError, StateOwner

NOTHING_PENDING = -1
MAX_CAPACITY_TOKENS = 1 << 40
RING_FIELDS = ("keys", "values", "key_scales", "value_scales")
ARRAY_TYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),
}


@dataclass(frozen=True)
class ArraySpec:
    """Shape and type of one array of a state."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        return size


def block_layout(
    config: ModelConfig, rows: int, capacity: int | None, window_dtype: str, activation_dtype: str
) -> dict[str, ArraySpec]:
    """The arrays that the blocks of a model keep for `rows` rows, by name.

    Args:
        capacity: tokens that global attention keeps; None where the model has none.
        window_dtype: type of attention's keys and values; with int8 each has a float32 scale a token.
        activation_dtype: type of the convolution's tail; the recurrent state is float32 in every precision.

    Raises:
        StateError: the capacity is missing where the model needs one, or given where it has no use.
    """
    if config.needs_capacity and (capacity is None or capacity < 1):
        raise StateError(
            f"the state's capacity is {capacity}; a model with global attention needs room for at least one token"
        )
    if capacity is not None and capacity > MAX_CAPACITY_TOKENS:
        raise StateError(f"the state's capacity is {capacity} tokens; it must be at most {MAX_CAPACITY_TOKENS}")
    if capacity is not None and not config.needs_capacity:
        raise StateError(f"capacity is {capacity}; this model's state has a fixed size and takes none")
    layout: dict[str, ArraySpec] = {}
    for step in config.plan():
        if step.kind == "recurrent":
            assert config.recurrent is not None
            past, width = config.recurrent.num_conv_taps - 1, config.recurrent.width
            layout[f"{step.state}.hidden"] = ArraySpec((rows, width), ARRAY_TYPES["float32"])
            layout[f"{step.state}.convolution"] = ArraySpec((rows, past, width), ARRAY_TYPES[activation_dtype])
        else:
            assert config.attention is not None
            num_slots = config.attention.window_of(step.kind) or capacity
            assert num_slots is not None
            ring = ArraySpec((rows, num_slots, config.attention.head_size), ARRAY_TYPES[window_dtype])
            layout[f"{step.state}.keys"] = layout[f"{step.state}.values"] = ring
            if window_dtype == "int8":
                scales = ArraySpec((rows, num_slots), ARRAY_TYPES["float32"])
                layout[f"{step.state}.key_scales"] = layout[f"{step.state}.value_scales"] = scales
    return layout


def is_ring(name: str) -> bool:
    """Whether the array [rows, slots, ...] of this name is a ring: a token writes one slot of it, and all of others."""
    return name.rpartition(".")[2] in RING_FIELDS


def capacity_of(config: ModelConfig, arrays: Mapping[str, np.ndarray]) -> int | None:
    """Tokens that global attention has room for; None where the model has none. 0 where no array tells."""
    if not config.needs_capacity:
        return None
    global_step = next(step for step in config.plan() if step.kind == "global_attention")
    keys = arrays.get(f"{global_step.state}.keys")
    return keys.shape[1] if keys is not None and keys.ndim == 3 else 0


def attention_bytes_per_token(config: ModelConfig, window_dtype: str) -> int:
    """Bytes that a token would add to the state if every block were global attention; 0 without sizes of attention.

    2 * blocks * head size * bytes of a number, the cache of a transformer of the model's own depth and head.
    """
    if config.attention is None:
        return 0
    return 2 * len(config.block_kinds) * config.attention.head_size * ARRAY_TYPES[window_dtype].itemsize


def state_layout(
    config: ModelConfig, rows: int, capacity: int | None, window_dtype: str, activation_dtype: str
) -> dict[str, ArraySpec]:
    """All arrays of a state: those of the blocks, and the counters of each row.

    In a model that skips these are three: `num_skipped` [rows, loops - 1] are the tokens of the document that each loop
    behind the first has not read.
    """
    number = np.dtype(np.int64)
    counters = {name: ArraySpec((rows,), number) for name in ("num_tokens", "pending")}
    if config.skips:
        counters["num_skipped"] = ArraySpec((rows, config.num_loops - 1), number)
    return {**counters, **block_layout(config, rows, capacity, window_dtype, activation_dtype)}


def state_bytes(config: ModelConfig, capacity: int | None, window_dtype: str, activation_dtype: str) -> int:
    """Bytes of a state of one row; arguments and errors as of `block_layout`."""
    return sum(spec.nbytes for spec in state_layout(config, 1, capacity, window_dtype, activation_dtype).values())


def row_layout(config: ModelConfig, window_dtype: str, activation_dtype: str) -> dict[str, ArraySpec]:
    """The arrays that the blocks keep for one row, as `block_layout` tells them; global attention has one slot here."""
    return block_layout(config, 1, 1 if config.needs_capacity else None, window_dtype, activation_dtype)


def bytes_written_by_a_token(config: ModelConfig, window_dtype: str, activation_dtype: str) -> int:
    """Bytes of a row's state that reading a token changes: a recurrent block's whole, one place of every ring."""
    layout = row_layout(config, window_dtype, activation_dtype)
    return sum(spec.nbytes // spec.shape[1] if is_ring(name) else spec.nbytes for name, spec in layout.items())


def check_layout(arrays: Mapping[str, np.ndarray], model: StateOwner, what: str) -> None:
    """Refuses arrays that are no state of the model; StateError begins with `what`."""
    capacity = capacity_of(model.config, arrays)
    rows = len(arrays["num_tokens"]) if arrays.get("num_tokens", np.zeros(())).ndim == 1 else 0
    expected = state_layout(model.config, rows, capacity, model.window_dtype, model.precision)
    found = {name: ArraySpec(array.shape, array.dtype) for name, array in arrays.items()}
    wrong = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
    if rows < 1 or wrong:
        raise StateError(f"{what} does not have the arrays of this model: {', '.join(wrong[:3]) or 'no rows'}")
    num_tokens, pending = arrays["num_tokens"], arrays["pending"]
    if num_tokens.min() < 0:
        raise StateError(f"{what} has read {num_tokens.min()} tokens; it must be 0 or more")
    for token in (pending.min(), pending.max()):
        if not NOTHING_PENDING <= token < model.config.vocab_size:
            raise StateError(
                f"{what}: the pending token is {token}; ids are 0 to {model.config.vocab_size - 1}, -1 is none"
            )
    if not _can_be_skipped(model.config, arrays):
        raise StateError(f"{what} counts skipped tokens that cannot be")
    if capacity is not None and num_tokens.max() > capacity:
        raise StateError(f"{what} holds {num_tokens.max()} tokens in a capacity of {capacity}")


def _can_be_skipped(config: ModelConfig, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether the counts of skipped tokens can be: 0 or more, by loops in turn not less, and no more than were read."""
    if not config.skips:
        return True
    num_tokens, num_skipped = arrays["num_tokens"], arrays["num_skipped"]
    counts = np.column_stack([np.zeros_like(num_tokens), num_skipped, num_tokens])
    return bool((counts[:, :-1] <= counts[:, 1:]).all())
