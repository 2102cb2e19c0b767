"""The state store: conversations kept under tenant and id, found again by name or by the tokens they begin with."""

import copy
import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, wraps
from pathlib import Path
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np

from griffinlm.errors import shown
from griffinlm.generation.store.content import StoredState, checked_state, checked_tokens, content_id
from griffinlm.generation.store.delta import decode, encode, materialise, num_bytes_unpacked
from griffinlm.generation.store.errors import (
    DamagedStateError,
    SignatureError,
    StateNotFoundError,
    StoreError,
)
from griffinlm.generation.store.index import Node
from griffinlm.generation.store.prefix import PrefixHashes
from griffinlm.generation.store.signed import seal, unseal
from griffinlm.generation.store.tiers import Tiers
from griffinlm.state import Fingerprint, StateOwner

LARGEST_IMPORT_BYTES = 1 << 30
LONGEST_NAME = 200

P = ParamSpec("P")
R = TypeVar("R")


class FoundPrefix(NamedTuple):
    """A kept state that has read the beginning of a document."""

    id: str
    num_tokens: int


@dataclass(frozen=True)
class StoreCounts:
    """What a store holds, counted exactly."""

    num_states: int
    """Of all tenants, in all processes on the directory."""
    record_bytes: int
    """Bytes of all records; never above the cap."""
    memory_bytes: int
    """Bytes that this process holds: arrays kept ready, or without a directory all records."""
    num_damaged: int
    """Damaged records found and set aside since the store was made."""


def _alone(method: Callable[Concatenate["StateStore", P], R]) -> Callable[Concatenate["StateStore", P], R]:
    """One call at a time in this process; a file system that refuses is a StoreError."""

    @wraps(method)
    def call(self: "StateStore", *args: P.args, **kwargs: P.kwargs) -> R:
        with self._lock:
            try:
                return method(self, *args, **kwargs)
            except OSError as error:
                raise StoreError(f"state store {self.directory}: {error.strerror or error}") from error

    return call


class StateStore:
    """Immutable states of one model by tenant and id. The id is a hash of the content, so that a repeated put is one.

    A tenant finds only what it put, and what was shared with all. A state is a delta against its parent, which may be
    deleted before it. The least recently used states that nothing stands on and that have no name are dropped where the
    records would exceed the cap. Any number of processes may use one directory; threads may share one store.

    A pending token belongs to the state and comes back with it, but it is not among the tokens read.
    """

    def __init__(
        self,
        model: StateOwner,
        directory: str | os.PathLike[str] | None,
        *,
        memory_bytes: int,
        disk_bytes: int | None = None,
    ) -> None:
        """Opens or makes a store and removes what killed processes left half-written.

        Args:
            directory: None keeps everything in this process.
            memory_bytes: of states kept ready; without a directory, of all records.
            disk_bytes: cap of all records in the directory, needed with one and refused without.

        Raises:
            StoreError: the directory cannot be used, or its index is damaged.
        """
        if (directory is None) != (disk_bytes is None):
            raise StoreError(f"disk_bytes is {disk_bytes}; it must be given exactly where the store has a directory")
        for name, value in (("memory_bytes", memory_bytes), ("disk_bytes", disk_bytes)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise StoreError(f"{name} is {value!r}; it must be a whole number of bytes, at least 0")
        self.model = model
        self.directory = None if directory is None else Path(directory)
        self.cap_bytes = memory_bytes if disk_bytes is None else disk_bytes
        self._lock = threading.RLock()
        self._open(memory_bytes)

    @_alone
    def _open(self, memory_bytes: int) -> None:
        self._tiers = Tiers(self.model, self.directory, memory_bytes, self.cap_bytes)
        self._index = self._tiers.index

    @_alone
    def close(self) -> None:
        self._tiers.close()

    def __enter__(self) -> "StateStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def view(self, model: StateOwner) -> "StateStore":
        """The same store for a model with states of the same shape, such as this one with an adapter.

        Each finds only what was put for its own model. Room, memory and files are one, and so is `close`.

        Raises:
            StoreError: the model's states have other arrays.
        """
        own, other = self.model, model
        if (own.config, own.precision, own.window_dtype) != (other.config, other.precision, other.window_dtype):
            raise StoreError("the store was opened for a model whose states have other arrays")
        found = copy.copy(self)
        found.model = model
        return found

    @_alone
    def put(
        self,
        tenant: str,
        token_ids: Sequence[int] | np.ndarray,
        arrays: Mapping[str, np.ndarray],
        parent: str | None = None,
    ) -> str:
        """Keeps a state and gives its id; on return it survives a crash.

        Args:
            token_ids: all tokens that the state has read of its document.
            arrays: of a state with one row, as `State.arrays()` gives them.
            parent: id of a state whose tokens this one goes on from. It only makes the record smaller.

        Raises:
            StateNotFoundError: the tenant has no such parent.
            DamagedStateError: the parent is damaged; the state can be put without it.
            StoreError: the state is not one of this model or does not continue its parent, or there is no room for it.
        """
        state = checked_state(self.model, token_ids, arrays)
        base = None if parent is None else self._found(tenant, parent)
        return self._tiers.add(self._scope(tenant), [state], base)[0]

    @_alone
    def get(self, tenant: str, state_id: str) -> StoredState:
        """Tokens and arrays exactly as they were put, as copies.

        Raises:
            StateNotFoundError: the tenant has no such state.
            DamagedStateError: a record does not match its checksum.
        """
        return self._tiers.load(self._found(tenant, state_id)).copy()

    @_alone
    def find_longest_prefix(self, tenant: str, token_ids: Sequence[int] | np.ndarray) -> FoundPrefix | None:
        """The kept state of the tenant, or shared one, that has read the most tokens from the start of `token_ids`.

        Whoever goes on from it reads `token_ids[num_tokens:]`, in the place of the state's pending token.
        """
        tokens = checked_tokens(self.model, token_ids)
        found = [self._longest_in(scope, tokens) for scope in (self._scope(tenant), self._scope(None))]
        return max(filter(None, found), key=lambda prefix: prefix.num_tokens, default=None)

    @_alone
    def get_longest_prefix(
        self, tenant: str, token_ids: Sequence[int] | np.ndarray
    ) -> tuple[str, StoredState] | tuple[None, None]:
        """The id of what `find_longest_prefix` finds and what `get` gives for it; a damaged state is passed over."""
        tokens = checked_tokens(self.model, token_ids)
        while (found := self.find_longest_prefix(tenant, tokens)) is not None:
            try:
                return found.id, self.get(tenant, found.id)
            except (StateNotFoundError, DamagedStateError):
                continue  # Neither is found again.
        return None, None

    @_alone
    def delete_all(self, tenant: str) -> int:
        """Removes all that a tenant has put, for every model that was ever run on the directory; gives how many.

        Damaged records that were set aside go too, since nobody can tell any more whose they are. What the tenant
        shared stays: see `unshare`.
        """
        return self._tiers.delete_all(self._owner(tenant))

    @_alone
    def delete(self, tenant: str, state_id: str) -> None:
        """Removes a state with its names; what it shares with states that stand on it goes when the last of them goes.

        Raises:
            StateNotFoundError: the tenant has no such state.
        """
        self._tiers.delete(self._scope(tenant), state_id)

    @_alone
    def ids(self, tenant: str) -> list[str]:
        """All states of a tenant, oldest first."""
        return self._index.ids(self._scope(tenant))

    @_alone
    def set_name(self, tenant: str, name: str, state_id: str) -> None:
        """Names a state of the tenant, in the place of what had the name; a named state is never dropped for room."""
        scope = self._scope(tenant)
        with self._index.writing():
            node = self._index.node(scope, state_id)
            if node is None:
                raise StateNotFoundError(f"there is no state {shown(state_id)}")
            self._index.set_name(scope, checked_name("name", name), node.node)

    @_alone
    def named(self, tenant: str, name: str) -> str:
        """The id of a named state; StateNotFoundError where the tenant has no such name."""
        return self._named(self._scope(tenant), name)

    @_alone
    def names(self, tenant: str) -> dict[str, str]:
        """Ids of the tenant's named states by name."""
        return self._index.names(self._scope(tenant))

    @_alone
    def remove_name(self, tenant: str, name: str) -> None:
        """Takes a name away; the state stays. StateNotFoundError where the tenant has no such name."""
        scope = self._scope(tenant)
        with self._index.writing():
            self._named(scope, name)
            self._index.remove_name(scope, name)
        self._index.empty_log()

    @_alone
    def share(self, tenant: str, state_id: str, name: str) -> str:
        """Copies a state to where every tenant finds it, and gives the copy's id.

        Raises:
            StateNotFoundError: the tenant has no such state.
            StoreError: another shared state has the name.
        """
        checked_name("name", name)
        state, scope = self._tiers.load(self._found(tenant, state_id)), self._scope(None)
        shared_id = content_id(scope, state)
        if self._index.named(scope, name) not in (None, shared_id):
            raise StoreError(f"another shared state is called {shown(name)}", hint="unshare it first")
        return self._tiers.add(scope, [state], None, name)[0]

    @_alone
    def shared(self, name: str) -> str:
        """The id of a shared state, good for every tenant; StateNotFoundError where there is none of that name."""
        return self._named(self._scope(None), name)

    @_alone
    def shared_names(self) -> dict[str, str]:
        """Ids of all shared states by name."""
        return self._index.names(self._scope(None))

    @_alone
    def unshare(self, name: str) -> None:
        """Deletes a shared state; StateNotFoundError where there is none of that name."""
        scope = self._scope(None)
        self._tiers.delete(scope, self._named(scope, name))

    @_alone
    def export_states(self, tenant: str, state_ids: Sequence[str], key: bytes) -> bytes:
        """One state or several (a pack) as bytes signed with HMAC-SHA256; whoever has the key can change them.

        Raises:
            StateNotFoundError: the tenant has no such state.
            SignatureError: the key is too short.
        """
        states = [self._tiers.load(self._found(tenant, state_id)) for state_id in state_ids]
        records = [encode(self.model, state, None) for state in states]
        return seal(records, self.model.identity.fingerprint, key)

    @_alone
    def import_states(
        self, tenant: str, data: bytes, key: bytes, largest_bytes: int = LARGEST_IMPORT_BYTES
    ) -> list[str]:
        """Puts exported states, all of them or none, and gives their ids in the tenant's scope.

        Args:
            largest_bytes: refused above, both the data and the states unpacked.

        Raises:
            SignatureError: too large, changed, cut, signed with another key, or of another model.
            StoreError: there is no room.
        """
        scope = self._scope(tenant)
        records = [decode(record) for record in unseal(data, self.model.identity.fingerprint, key, largest_bytes)]
        unpacked = sum(num_bytes_unpacked(self.model, record) for record in records)
        if unpacked > largest_bytes:
            raise SignatureError(f"exported states unpack to {unpacked} bytes; at most {largest_bytes} are allowed")
        states = [materialise(self.model, [record], None) for record in records]
        return self._tiers.add(scope, states, None)

    @_alone
    def counts(self) -> StoreCounts:
        num_states, record_bytes, num_damaged = self._index.totals()
        memory_bytes = record_bytes if self.directory is None else self._tiers.memory.num_bytes
        return StoreCounts(num_states, record_bytes, memory_bytes, num_damaged)

    def _owner(self, tenant: str | None) -> bytes:
        if tenant is not None:
            checked_name("tenant", tenant)
        return hashlib.sha256(json.dumps(tenant).encode()).digest()

    def _scope(self, tenant: str | None) -> bytes:
        """Hashes of tenant and model, the first key of every lookup; None is what is shared with all."""
        return self._owner(tenant) + _digest(self.model.identity.fingerprint)

    def _found(self, tenant: str, state_id: str) -> Node:
        for scope in (self._scope(tenant), self._scope(None)):
            node = self._index.node(scope, state_id) if isinstance(state_id, str) else None
            if node is not None:
                self._index.note_use(node.node)
                return node
        raise StateNotFoundError(f"there is no state {shown(state_id)}")

    def _named(self, scope: bytes, name: str) -> str:
        state_id = self._index.named(scope, checked_name("name", name))
        if state_id is None:
            raise StateNotFoundError(f"no state is called {shown(name)}")
        return state_id

    def _longest_in(self, scope: bytes, tokens: np.ndarray) -> FoundPrefix | None:
        hashes = PrefixHashes(scope, tokens)
        for num_tokens in self._index.num_tokens_at(scope, hashes.blocks):
            if 0 < num_tokens <= len(tokens):
                state_id = self._index.with_prefix(scope, hashes.of_first(num_tokens))
                if state_id is not None:
                    return FoundPrefix(state_id, num_tokens)
        return None


@lru_cache(maxsize=64)
def _digest(fingerprint: Fingerprint) -> bytes:
    return hashlib.sha256(json.dumps(asdict(fingerprint)).encode()).digest()


def checked_name(what: str, name: str) -> str:
    """A name or tenant as it is; StoreError, beginning with `what`, where none can be called so."""
    if not isinstance(name, str) or not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise StoreError(f"{what} {shown(name)} cannot be; it must be 1 to {LONGEST_NAME} printable characters")
    return name
