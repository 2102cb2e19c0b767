"""What a store keeps: the arrays of a state with one row, and the tokens that it has read."""

import hashlib
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from griffinlm.generation.store.errors import StoreError
from griffinlm.state import NOTHING_PENDING, ArraySpec, StateOwner, can_be_skipped, state_layout

RING_FIELDS = ("keys", "values", "key_scales", "value_scales")
"""Arrays [1, slots, ...] in which a token writes one slot; every other array changes as a whole."""


class StoredState(NamedTuple):
    """A state and its history."""

    token_ids: np.ndarray
    """int32 [tokens], all that the state has read of its document; a pending token is not among them."""
    arrays: dict[str, np.ndarray]
    """As in `state.state_layout`, one row."""

    @property
    def nbytes(self) -> int:
        return self.token_ids.nbytes + sum(array.nbytes for array in self.arrays.values())

    def copy(self) -> "StoredState":
        return StoredState(self.token_ids.copy(), {name: array.copy() for name, array in self.arrays.items()})


def is_ring(name: str) -> bool:
    """Whether the array of this name is a ring of slots."""
    return name.rpartition(".")[2] in RING_FIELDS


def layout_of(model: StateOwner, capacity: int | None) -> dict[str, ArraySpec]:
    """The arrays of one row of the model; StateError where the capacity is none that it can have."""
    return state_layout(model.config, 1, capacity, model.window_dtype, model.precision)


def capacity_of(model: StateOwner, arrays: Mapping[str, np.ndarray]) -> int | None:
    """Tokens that global attention has room for; None where the model has none. 0 where no array tells."""
    if not model.config.needs_capacity:
        return None
    global_step = next(step for step in model.config.plan() if step.kind == "global_attention")
    keys = arrays.get(f"{global_step.state}.keys")
    return keys.shape[1] if keys is not None and keys.ndim == 3 else 0


def checked_state(model: StateOwner, token_ids: Sequence[int] | np.ndarray, arrays: Mapping[str, Any]) -> StoredState:
    """Tokens and arrays as a state of the model, the arrays not copied.

    Raises:
        GriffinError: arrays are missing, left over or of another shape or type; a token or a count cannot be.
    """
    tokens = checked_tokens(model, token_ids)
    expected = layout_of(model, capacity_of(model, arrays))
    found = {name: ArraySpec(array.shape, array.dtype) for name, array in arrays.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise StoreError(
            f"the state's arrays are not those of one row of this model: {', '.join(wrong[:3])}",
            hint="a store keeps one conversation at a time: state.row(i).arrays()",
        )
    num_tokens, pending = int(arrays["num_tokens"][0]), int(arrays["pending"][0])
    if num_tokens != len(tokens):
        raise StoreError(f"the state has read {num_tokens} tokens of its document; {len(tokens)} token ids were given")
    if not NOTHING_PENDING <= pending < model.config.vocab_size:
        raise StoreError(f"the pending token is {pending}; ids are 0 to {model.config.vocab_size - 1}, -1 is none")
    if not can_be_skipped(model.config, arrays):
        raise StoreError("the state counts skipped tokens that cannot be")
    return StoredState(tokens, {name: arrays[name] for name in expected})


def checked_tokens(model: StateOwner, token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Token ids as int32 [tokens]; StoreError where they are no ids of the vocabulary."""
    try:
        is_array = isinstance(token_ids, np.ndarray) and token_ids.ndim == 1 and token_ids.dtype.kind == "i"
        is_plain = is_array or (isinstance(token_ids, list) and set(map(type, token_ids)) == {int})
        tokens = np.asarray(token_ids if is_plain else [operator.index(token) for token in token_ids], np.int64)
    except (TypeError, OverflowError) as error:
        raise StoreError("token ids must be a list of whole numbers") from error
    wrong = tokens[(tokens < 0) | (tokens >= model.config.vocab_size)]
    if wrong.size:
        raise StoreError(f"token id {wrong[0]} is not in the vocabulary; ids are 0 to {model.config.vocab_size - 1}")
    return tokens.astype(np.int32)


def content_id(scope: bytes, state: StoredState) -> str:
    """SHA-256 of scope, tokens and arrays: the name of exactly this content in exactly this scope."""
    digest = hashlib.sha256(scope + len(state.token_ids).to_bytes(8, "little"))
    digest.update(state.token_ids.astype("<i4").tobytes())
    for name in sorted(state.arrays):
        array = np.ascontiguousarray(state.arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
