"""States on their way to a store and from it: a bounded number of them, and nobody waits for a disk."""

from bisect import bisect
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple, TypeVar

from griffinlm.generation.store import DamagedStateError, StateNotFoundError, StateStore

LEAST_GAP_TOKENS = 32
"""Reading as many tokens costs no more than fetching a state: of two places closer than this one is enough."""

SPARED_BY_STARTS, SPARED_BY_LEAVING, SPARED_BY_RESUMED = 0, 1, 2
"""Places left to others: a slow disk holds up no reading, and answers that wait with a state hold up no end."""

R = TypeVar("R")


class Kept(NamedTuple):
    """What became of a state to be kept."""

    id: str | None
    fault: str | None = None


class Chain:
    """The state kept last of a conversation, against which the next is stored. Used by the writing thread alone."""

    def __init__(self, before: "Chain | None" = None, state_id: str | None = None) -> None:
        self._before, self.state_id = before, state_id

    def latest(self) -> str | None:
        """Where this conversation has kept nothing yet, that of the one it branches off from."""
        return self.state_id if self.state_id or self._before is None else self._before.latest()


class Keeper:
    """Reads and writes a store on threads of its own. Every state outside a slot stands in one of its places.

    One thread writes and one reads; the store lets in one at a time, so a lookup waits for one write at most.
    """

    def __init__(self, num_places: int) -> None:
        self.num_places = num_places
        self.num_taken = 0
        self._writer = ThreadPoolExecutor(1, "griffinlm-keep")
        self._reader = ThreadPoolExecutor(1, "griffinlm-fetch")
        self._leaving: set[Future[Any]] = set()
        """What gives its place back when it is done."""

    def take_place(self, num_spared: int = SPARED_BY_LEAVING) -> bool:
        """Whether there was room for one more state beside so many places that are spared for others."""
        if self.num_taken >= self.num_places - num_spared:
            return False
        self.num_taken += 1
        return True

    def free_place(self) -> None:
        self.num_taken -= 1

    def fetch(self, call: Callable[[], R]) -> "Future[R]":
        """Runs a call that gives a state; whoever takes the result frees the place, or abandons the future."""
        return self._reader.submit(call)

    def abandon(self, future: "Future[Any]") -> None:
        """Nobody waits for a fetched state any more."""
        self._leaving.add(future)

    def keep(
        self, store: StateStore, tenant: str, token_ids: Sequence[int], arrays: Any, chain: Chain
    ) -> "Future[Kept]":
        """Puts a state, for which a place has been taken, in the order of the calls."""
        future = self._writer.submit(_put, store, tenant, token_ids, arrays, chain)
        self._leaving.add(future)
        return future

    def settle(self) -> None:
        """Frees the places of what is done."""
        done = {future for future in self._leaving if future.done()}
        self._leaving -= done
        self.num_taken -= len(done)

    def wait(self, others: Sequence["Future[Any]"], timeout_seconds: float) -> None:
        """Until anything is done."""
        wait([*self._leaving, *others], timeout_seconds, FIRST_COMPLETED)

    def close(self) -> None:
        """Waits for what is being written."""
        self._writer.shutdown()
        self._reader.shutdown()


def _put(store: StateStore, tenant: str, token_ids: Sequence[int], arrays: Any, chain: Chain) -> Kept:
    try:
        parent = chain.latest()
        if parent is None:
            found = store.find_longest_prefix(tenant, token_ids)
            parent = None if found is None else found.id
        try:
            chain.state_id = store.put(tenant, token_ids, arrays, parent)
        except (StateNotFoundError, DamagedStateError):
            chain.state_id = store.put(tenant, token_ids, arrays)
    except Exception as error:  # The answer is written; whatever goes wrong behind it is told with its end.
        return Kept(None, str(error) or repr(error))
    return Kept(chain.state_id)


def places_to_keep(
    num_tokens: int, num_read: int, boundaries: Sequence[int], boundary_tokens: int, has_last: bool = True
) -> list[int]:
    """Ascending numbers of a document's tokens after which to keep a state.

    First comes the end without the last token, whose logits the answer needs, then boundaries, the latest first, then
    multiples of `boundary_tokens`; each where no other is closer than `LEAST_GAP_TOKENS`.

    Args:
        num_read: where reading begins; only later places count.
        has_last: whether the end is worth keeping.
    """
    last = num_tokens - 1
    kept = [last] if has_last and last >= num_read else []
    for places in (sorted(set(boundaries)), range(boundary_tokens, last, boundary_tokens)):
        for place in reversed(places):
            index = bisect(kept, place)
            is_apart = all(abs(place - other) >= LEAST_GAP_TOKENS for other in kept[max(0, index - 1) : index + 1])
            if num_read < place < last and is_apart:
                kept.insert(index, place)
    return kept
