"""What a store keeps: the arrays of a state with one row, and the tokens that it has read."""

import hashlib
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from griffinlm.generation.store.errors import StoreError
from griffinlm.state import ArraySpec, StateError, StateOwner, check_layout, state_layout


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


def layout_of(model: StateOwner, capacity: int | None) -> dict[str, ArraySpec]:
    """The arrays of one row of the model; StateError where the capacity is none that it can have."""
    return state_layout(model.config, 1, capacity, model.window_dtype, model.precision)


def checked_state(model: StateOwner, token_ids: Sequence[int] | np.ndarray, arrays: Mapping[str, Any]) -> StoredState:
    """Tokens and arrays as a state of the model, the arrays not copied.

    Raises:
        GriffinError: arrays are missing, left over or of another shape or type; a token or a count cannot be.
    """
    tokens = checked_tokens(model, token_ids)
    try:
        check_layout(arrays, model, "the state")
    except StateError as error:
        raise StoreError(str(error)) from error
    num_rows, num_tokens = len(arrays["num_tokens"]), int(arrays["num_tokens"][0])
    if num_rows != 1:
        raise StoreError(
            f"the state has {num_rows} rows; a store keeps one conversation at a time",
            hint="keep state.row(i).arrays()",
        )
    if num_tokens != len(tokens):
        raise StoreError(f"the state has read {num_tokens} tokens of its document; {len(tokens)} token ids were given")
    return StoredState(tokens, dict(arrays))


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
