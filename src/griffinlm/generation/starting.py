"""Where a job begins: the longest kept state of its document, a tuned state, or nothing."""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from griffinlm.generation.answering import GenerationError
from griffinlm.generation.job import Counts, Job
from griffinlm.generation.keeping import SPARED_BY_STARTS, Keeper, places_to_keep
from griffinlm.generation.request import Start
from griffinlm.generation.running import Found, Row, Running, find_in_store, tokenizer_of
from griffinlm.state import StateOwner, state_layout

REPLIES_REMEMBERED = 4096


class _Reply(NamedTuple):
    """An answer by lengths and digests, which take as little memory for a long one: the budget counts none of it."""

    num_tokens: int
    tokens_digest: bytes
    num_characters: int
    text_digest: bytes


class Starter:
    """Finds starts without waiting for the store, and counts what they save.

    Args:
        capacity: tokens that a document and its answer may have; None is no limit.
    """

    def __init__(self, keeper: Keeper, boundary_tokens: int, capacity: int | None, counts: Counts) -> None:
        self._keeper, self._boundary_tokens, self._counts = keeper, boundary_tokens, counts
        self._capacity = capacity
        self._replies: OrderedDict[bytes, _Reply] = OrderedDict()
        """The latest answers, by tenant, adapter and document."""

    def find(self, running: Running) -> Start | None:
        """Where a job with a slot begins; None while the store is being asked.

        Raises:
            GriffinError: the job cannot begin: its state is gone, or it would pass the capacity.
        """
        suspended = running.suspended
        if suspended is not None and suspended.num_read > len(running.model.initial_ids):
            return self._begun(running, Found(suspended.token_ids), suspended.state.arrays(), suspended.num_read)
        if running.store is None:
            return self._from_nothing(running, Found(running.token_ids))
        if running.fetched is None:
            if not self._keeper.take_place(SPARED_BY_STARTS):
                return None
            running.fetched = self._keeper.fetch(
                partial(find_in_store, running.store, running.job, running.token_ids, running.is_read_anew)
            )
        if not running.fetched.done():
            return None
        fetched, running.fetched = running.fetched, None
        # Its state stands in the slot before anybody else can take a place.
        self._keeper.free_place()
        found = fetched.result()
        self._counts.num_failed_lookups += found.fault is not None
        if found.state is None:
            return self._from_nothing(running, found)
        self._counts.num_prefix_hits += 1
        return self._begun(running, found, found.state.arrays, len(found.state.token_ids))

    def require_capacity(self, num_tokens: int, job: Job) -> None:
        """Refuses what would pass the capacity before its end; GenerationError with the numbers."""
        wanted = num_tokens + (0 if job.options is None else job.options.max_tokens)
        if self._capacity is not None and wanted > self._capacity:
            raise GenerationError(f"document and answer may reach {wanted} tokens; the capacity is {self._capacity}")

    def note_reply(self, row: Row) -> None:
        """Remembers an answer, to know it again when its text comes back cut into other tokens."""
        running = row.running
        key = _key(running, len(running.token_ids))
        self._replies.pop(key, None)
        token_ids, text = row.completion.token_ids[:-1], row.completion.text
        self._replies[key] = _Reply(len(token_ids), _digest(_bytes_of(token_ids)), len(text), _digest(text.encode()))
        if len(self._replies) > REPLIES_REMEMBERED:
            self._replies.popitem(last=False)

    def _from_nothing(self, running: Running, found: Found) -> Start:
        state = running.model.initial_state()
        if state is None:
            return self._begun(running, found, None, 0)
        ids = running.model.initial_ids
        if found.token_ids[: len(ids)] != ids or len(found.token_ids) == len(ids):
            raise GenerationError(
                f"the document begins with tokens {found.token_ids[: len(ids) + 1]}; under adapter"
                f" {running.model.adapter!r} it must begin with {ids} and go on"
            )
        return self._begun(running, found, state.arrays(), len(ids))

    def _begun(self, running: Running, found: Found, arrays: Any, num_read: int) -> Start:
        job = running.job
        running.know(found.token_ids)
        document, num_tokens = running.token_ids, len(running.token_ids)
        self.require_capacity(num_tokens, job)
        written = [] if running.suspended is None else running.suspended.written_ids
        if running.suspended is not None:
            self._keeper.free_place()
        running.has_begun, running.suspended = True, None
        running.num_cached, running.chain.state_id = num_read, found.state_id
        self._counts.num_starts += 1
        self._counts.num_prompt_tokens += num_tokens
        self._counts.num_cached_tokens += min(num_read, num_tokens)
        self._counts.num_reread_replies += self._is_reread(running, num_read)
        places = [num_tokens - 1] if job.extract is not None and num_tokens > num_read else []
        if running.keeps:
            has_last = num_tokens > 1 or job.options is None
            places = places_to_keep(num_tokens, num_read, job.boundaries, self._boundary_tokens, has_last)
        prompt = document[:-1] if job.options is None else document + written
        if arrays is not None and self._capacity is not None:
            arrays = _with_room(running.model, arrays, self._capacity)
        return Start(prompt, arrays, num_read, tuple(places))

    def _is_reread(self, running: Running, num_read: int) -> bool:
        """Whether the start lies before a reply whose text the document has, but not its tokens."""
        document = running.token_ids
        tokenizer = tokenizer_of(running.model)
        reply = self._replies.get(_key(running, num_read + 1)) if num_read else None
        if reply is None or reply.num_characters == 0 or tokenizer is None:
            return False
        behind = document[num_read + 1 :]
        if _digest(_bytes_of(behind[: reply.num_tokens])) == reply.tokens_digest:
            return False
        return _digest(tokenizer.decode(behind)[: reply.num_characters].encode()) == reply.text_digest


def _with_room(model: StateOwner, arrays: Mapping[str, Any], capacity: int) -> dict[str, Any]:
    """The arrays of a state of at most `capacity` tokens with that many slots in global attention, filled in order."""
    found = {}
    for name, spec in state_layout(model.config, 1, capacity, model.window_dtype, model.precision).items():
        found[name] = array = arrays[name]
        if array.shape != spec.shape:
            found[name] = np.zeros(spec.shape, spec.dtype)
            num_slots = min(capacity, array.shape[1])
            found[name][:, :num_slots] = array[:, :num_slots]
    return found


def _key(running: Running, num_tokens: int) -> bytes:
    """Of tenant, adapter and the first tokens of the document."""
    scope = repr((running.job.tenant, running.model.adapter)).encode()
    return _digest(scope + _bytes_of(running.token_ids[:num_tokens]))


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _bytes_of(token_ids: list[int]) -> bytes:
    return np.asarray(token_ids, "<i4").tobytes()
