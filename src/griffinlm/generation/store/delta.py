"""A state as bytes: what it holds that the state before it did not.

Recurrent state, convolution tail and counters are small and stored whole. Of a ring only the slots are stored whose
bytes differ, which after a turn are the slots of its tokens. The state before the first is all zeros, so that a record
against nothing is the same thing, and a short conversation never stores the empty part of its window.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import safetensors
import safetensors.numpy

from griffinlm.generation.store.content import StoredState, checked_state, layout_of
from griffinlm.generation.store.errors import StoreError
from griffinlm.state import ARRAY_TYPES, ArraySpec, StateError, StateOwner, capacity_of, is_ring

TOKENS, CAPACITY, SLOTS = "tokens", "capacity", "slots."
"""Names beside those of the state's arrays: new tokens, room of global attention, changed slots by number of slots."""

MOST_NEW_SHARE = 0.75

Record = Mapping[str, np.ndarray]


def encode(model: StateOwner, state: StoredState, base: StoredState | None) -> bytes:
    """The record of a state against another one whose tokens it begins with, or against nothing."""
    known = 0 if base is None else len(base.token_ids)
    record: dict[str, np.ndarray] = {
        TOKENS: state.token_ids[known:].astype(np.int32),
        CAPACITY: np.asarray([capacity_of(model.config, state.arrays) or 0], np.int64),
    }
    changed: dict[int, np.ndarray] = {}
    for name in filter(is_ring, state.arrays):
        ring = state.arrays[name]
        differs = _changed_slots(ring, None if base is None else base.arrays[name])
        changed[ring.shape[1]] = changed.get(ring.shape[1], False) | differs
    slots = {num_slots: np.flatnonzero(differs) for num_slots, differs in changed.items()}
    record |= {f"{SLOTS}{num_slots}": index for num_slots, index in slots.items()}
    for name, array in state.arrays.items():
        part = np.ascontiguousarray(array[:, slots[array.shape[1]]] if is_ring(name) else array)
        record[name] = part.view(_stored_type(part.dtype))
    return safetensors.numpy.save(record)


def is_mostly_new(state: StoredState, base: StoredState) -> bool:
    """Whether more than `MOST_NEW_SHARE` of the slots that rings hold were written since the base.

    A record against nothing is then hardly larger, and no other has to be read for it.
    """
    num_slots = max((array.shape[1] for name, array in state.arrays.items() if is_ring(name)), default=0)
    num_tokens = len(state.token_ids)
    num_new = min(num_tokens - len(base.token_ids), num_slots)
    return num_new > MOST_NEW_SHARE * min(num_tokens, num_slots)


def decode(content: bytes) -> Record:
    """The arrays of a record.

    Raises:
        StoreError: the bytes are no record.
    """
    try:
        record = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise StoreError("the content is no record of a state") from error
    if record.get(TOKENS, np.zeros(0)).dtype != np.int32 or record[TOKENS].ndim != 1:
        raise StoreError("a record of a state has no token ids")
    if record.get(CAPACITY, np.zeros(0)).dtype != np.int64 or record[CAPACITY].shape != (1,):
        raise StoreError("a record of a state has no capacity")
    return record


def num_bytes_unpacked(model: StateOwner, record: Record) -> int:
    """Bytes of the state that a record against nothing stands for, before any of them is allocated."""
    return record[TOKENS].nbytes + sum(spec.nbytes for spec in _layout(model, record).values())


def materialise(model: StateOwner, records: Sequence[Record], start: StoredState | None) -> StoredState:
    """The state after applying records, oldest first, to a state, or to nothing; `start` is not changed.

    Raises:
        StoreError: a record does not fit the model, or the state before it.
    """
    layout = _layout(model, records[0])
    if start is None:
        arrays = {name: np.zeros(spec.shape, spec.dtype) for name, spec in layout.items()}
    else:
        arrays = start.copy().arrays
    for record in records:
        _apply(record, arrays)
    known = [] if start is None else [start.token_ids]
    return checked_state(model, np.concatenate([*known, *(record[TOKENS] for record in records)]), arrays)


def _layout(model: StateOwner, record: Record) -> dict[str, ArraySpec]:
    try:
        return layout_of(model, int(record[CAPACITY][0]) or None)
    except StateError as error:
        raise StoreError(f"a record does not fit the model: {error}") from error


def _changed_slots(ring: np.ndarray, base: np.ndarray | None) -> np.ndarray:
    """bool [slots], whether a slot's bytes differ from the base's, or from zeros."""
    words = _as_words(ring)
    return (words != (0 if base is None else _as_words(base))).any(axis=1)


def _as_words(ring: np.ndarray) -> np.ndarray:
    """A ring [1, slots, ...] as whole numbers [slots, words]: equal exactly where the bytes are equal."""
    rows = np.ascontiguousarray(ring).reshape(ring.shape[1], -1).view(np.uint8)
    return rows.view(np.uint64) if rows.shape[1] % 8 == 0 else rows


def _apply(record: Record, arrays: dict[str, np.ndarray]) -> None:
    """Writes a record over the arrays of the state before it."""
    named = {name for name in record if name not in (TOKENS, CAPACITY) and not name.startswith(SLOTS)}
    if named != arrays.keys():
        raise StoreError(f"a record holds other arrays: {', '.join(sorted(named ^ arrays.keys())[:3])}")
    for name, array in arrays.items():
        new, dtype = record[name], _stored_type(array.dtype)
        part = (slice(None), _slots(record, array.shape[1])) if is_ring(name) else ...
        expected = array[part].shape
        if new.shape != expected or new.dtype != dtype:
            raise StoreError(f"{name} of a record is {new.dtype}{list(new.shape)}; it must be {dtype}{list(expected)}")
        array[part] = new.view(array.dtype)


def _slots(record: Record, num_slots: int) -> np.ndarray:
    slots = record.get(f"{SLOTS}{num_slots}")
    if slots is None or slots.dtype != np.int64 or slots.ndim != 1 or ((slots < 0) | (slots >= num_slots)).any():
        raise StoreError(f"a record does not say which of {num_slots} slots it changes")
    return slots


def _stored_type(dtype: np.dtype) -> np.dtype:
    """Bits of the types that safetensors does not read back into numpy are stored as whole numbers."""
    return np.dtype(np.uint16) if dtype == ARRAY_TYPES["bfloat16"] else dtype
