"""Index, records and memory as one: takes states apart to keep them and puts them together again."""

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from griffinlm.errors import shown
from griffinlm.generation.store.content import StoredState, content_id
from griffinlm.generation.store.delta import decode, encode, is_mostly_new, materialise
from griffinlm.generation.store.disk import DiskRecords, MemoryRecords
from griffinlm.generation.store.errors import DamagedStateError, StateNotFoundError, StoreError
from griffinlm.generation.store.index import Index, NewState, Node
from griffinlm.generation.store.memory import MemoryTier
from griffinlm.generation.store.prefix import PrefixHashes
from griffinlm.state import StateOwner

LONGEST_CHAIN = 32
"""Records that are read at most to put a state together: every 32nd stands on nothing."""


class Tiers:
    """States by node: materialised ones in memory, records of all of them under a cap, what exists in the index."""

    def __init__(self, model: StateOwner, directory: Path | None, memory_bytes: int, cap_bytes: int) -> None:
        self._model, self._cap_bytes = model, cap_bytes
        self._records = MemoryRecords() if directory is None else DiskRecords(directory)
        self.index = Index(directory)
        self.memory = MemoryTier(0 if directory is None else memory_bytes)
        self._sweep()

    def close(self) -> None:
        self.index.close()

    def load(self, node: Node) -> StoredState:
        """The state of a node with an id, not to be written to.

        Raises:
            StateNotFoundError: another process removed it meanwhile.
            DamagedStateError: a record of it is damaged; it is set aside, and what needs it is out of the index.
        """
        missing: list[Node] = []
        ready = None
        for link in self.index.chain(node.node):
            ready = self.memory.get(link.node)
            if ready is not None:
                break
            missing.append(link)
        if not missing:
            if ready is None:
                raise StateNotFoundError(f"there is no state {shown(node.id)}")
            return ready
        records = [decode(self._read(link, node)) for link in reversed(missing)]
        try:
            state = materialise(self._model, records, ready)
        except StoreError as error:
            raise self._damaged(node, node) from error
        # A damaged index may join sound records wrongly; the id tells.
        if content_id(node.scope, state) != node.id:
            raise self._damaged(node, node)
        self.memory.put(node.node, state)
        return state

    def add(self, scope: bytes, states: Sequence[StoredState], base: Node | None, name: str | None = None) -> list[str]:
        """Keeps all states or none, as deltas against the base where that makes them smaller, and gives their ids.

        Args:
            name: given to the last of them, in one step with keeping it.

        Raises:
            StoreError: a state does not continue the base, or there is no room for all of them.
        """
        prepared = [self._prepared(scope, state, base) for state in states]
        dropped: list[str] = []
        nodes: list[int] = []
        try:
            with self.index.writing():
                for (new, content), state in zip(prepared, states, strict=True):
                    nodes.append(self._enter(new, content, state, nodes, dropped))
                if name is not None:
                    self.index.set_name(scope, name, nodes[-1])
        except BaseException:
            with contextlib.suppress(StoreError, OSError):
                self._sweep()
            raise
        for record in dropped:
            self._records.remove(record)
        for node, state in zip(nodes, states, strict=True):
            self.memory.put(node, state)
        return [new.id for new, _ in prepared]

    def delete(self, scope: bytes, state_id: str) -> None:
        """Removes a state, its names, and every record that only it needed.

        Raises:
            StateNotFoundError: the scope has no such state.
        """
        with self.index.writing():
            node = self.index.node(scope, state_id)
            if node is None:
                raise StateNotFoundError(f"there is no state {shown(state_id)}")
            records = self.index.remove(node.node)
        self.memory.drop(node.node)
        for record in records:
            self._records.remove(record)
        self.index.empty_log()

    def delete_all(self, owner: bytes) -> int:
        """Removes all states whose scope begins with the owner's hash, and damaged records; gives how many states."""
        with self.index.writing():
            num_states, nodes, records = self.index.remove_owner(owner)
        for node in nodes:
            self.memory.drop(node)
        for record in records:
            self._records.remove(record)
        self._records.remove_damaged()
        self.index.empty_log()
        return num_states

    def _prepared(self, scope: bytes, state: StoredState, base: Node | None) -> tuple[NewState, bytes]:
        """What to enter, its record's name still open, and the record."""
        before = None if base is None else self.load(base)
        if before is not None:
            known = len(before.token_ids)
            if not np.array_equal(before.token_ids, state.token_ids[:known]):
                raise StoreError(f"the tokens do not begin with the {known} tokens of parent {shown(base and base.id)}")
            is_grown = any(before.arrays[name].shape != array.shape for name, array in state.arrays.items())
            is_long = base is not None and base.num_links + 1 >= LONGEST_CHAIN
            if is_grown or is_long or is_mostly_new(state, before):
                base = before = None
        content = encode(self._model, state, before)
        hashes = PrefixHashes(scope, state.token_ids)
        num_tokens = len(state.token_ids)
        new = NewState(
            scope=scope,
            id=content_id(scope, state),
            base=base,
            record="",
            checksum=hashlib.sha256(content).digest(),
            num_bytes=len(content),
            num_tokens=num_tokens,
            block=hashes.blocks[-1],
            prefix=hashes.of_first(num_tokens),
        )
        return new, content

    def _enter(self, new: NewState, content: bytes, state: StoredState, nodes: list[int], dropped: list[str]) -> int:
        """Makes room, writes the record and enters it; gives the node, which may have been there already."""
        known = self.index.node(new.scope, new.id)
        if known is not None:
            faulty = next((link for link in self.index.chain(known.node) if self._content(link) is None), None)
            if faulty is None:
                self.index.note_use(known.node)
                return known.node
            dropped += self._remove_damaged(faulty)
        base = new.base
        if base is not None and (base.id is None or self.index.node(base.scope, base.id) != base):
            # Deleted by another process since the call began: the record stands on nothing instead.
            content = encode(self._model, state, None)
            new = new._replace(base=None, checksum=hashlib.sha256(content).digest(), num_bytes=len(content))
        self._make_room(new, nodes, dropped)
        return self.index.add(new._replace(record=self._records.write(content)))

    def _make_room(self, new: NewState, nodes: list[int], dropped: list[str]) -> None:
        """Drops what was used longest ago until a new record fits, but not its base nor what came with it."""
        besides = None if new.base is None else new.base.node
        while self.index.num_bytes() + new.num_bytes > self._cap_bytes:
            oldest = self.index.least_recently_used(besides)
            if oldest is None or oldest in nodes:
                raise StoreError(
                    f"a record of {new.num_bytes} bytes does not fit into the store's {self._cap_bytes} bytes beside"
                    " what has names or is needed",
                    hint="give the store a larger cap, or delete named states",
                )
            dropped += self.index.remove(oldest)
            self.memory.drop(oldest)

    def _content(self, link: Node) -> bytes | None:
        """The record of a node; None where it is missing or damaged."""
        content = self._records.read(link.record)
        return content if content is not None and hashlib.sha256(content).digest() == link.checksum else None

    def _read(self, link: Node, wanted: Node) -> bytes:
        content = self._content(link)
        if content is None:
            raise self._damaged(link, wanted)
        return content

    def _damaged(self, link: Node, wanted: Node) -> StoreError:
        """Sets a damaged record aside, unless it only looks so because another process has just removed it."""
        with self.index.writing():
            if not self.index.chain(link.node):
                return StateNotFoundError(f"there is no state {shown(wanted.id)}")
            others = self._remove_damaged(link)
        for record in others:
            self._records.remove(record)
        return DamagedStateError(
            f"state {shown(wanted.id)} is damaged: record {link.record} does not match its checksum; it was set aside"
        )

    def _remove_damaged(self, link: Node) -> list[str]:
        """Gives the records that were of use only together with the damaged one."""
        own, *others = self.index.remove_damaged(link.node)
        self._records.set_aside(own)
        return others

    def _sweep(self) -> None:
        """Removes records that the index does not know.

        Records appear and are entered while their process writes alone, so that none of them is about to be entered.
        """
        with self.index.writing():
            for record in set(self._records.names()) - self.index.records():
                self._records.remove(record)
