"""States kept by tenant and id: deltas, prefixes, names, signed exports; in memory and on disk."""

from griffinlm.generation.store.content import StoredState
from griffinlm.generation.store.errors import DamagedStateError, SignatureError, StateNotFoundError, StoreError
from griffinlm.generation.store.index import empty_log
from griffinlm.generation.store.store import FoundPrefix, StateStore, StoreCounts, checked_name

__all__ = [
    "DamagedStateError",
    "FoundPrefix",
    "SignatureError",
    "StateNotFoundError",
    "StateStore",
    "StoreCounts",
    "StoreError",
    "StoredState",
    "checked_name",
    "empty_log",
]
