"""Requests join and leave the slots of an executor at every step. Knows token ids and slot numbers, nothing else."""

import heapq
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from griffinlm.errors import GriffinError
from griffinlm.generation.pace import WHOLE_CHUNK_TOKENS, Pace
from griffinlm.generation.queue import Group, ReadPrompt, Turn, check_group, check_room, most_urgent
from griffinlm.generation.request import (
    Choose,
    Event,
    FinishReason,
    Remainder,
    Request,
    RequestError,
    StateEvent,
    Step,
    TokenEvent,
    choose_each,
)


@dataclass(eq=False)
class _Writing:
    request: Request
    slot: int
    num_written: int = 0
    last_token: int = -1
    ended: FinishReason | None = None
    """Why the answer is over, where its state still stands in the slot."""


class Scheduler:
    """Runs requests, as many at a time as there are slots. Nothing is ever taken back from one that has a slot.

    Args:
        executor: a `griffinlm.executor.Executor`, used by this scheduler alone.
        make_chunk: turns a list of ids into what the executor's `prefill` takes as tokens of one row.
        max_waiting: requests that may wait beyond those for which slots are free; None is no limit.
        clock: seconds that never go back.
        may_leave: asked before a state leaves its slot with an event; until it says yes the state waits there. A yes
            is for one state. It is not asked for states that `cancel` gives.
        choose: gives the tokens of rows from their logits; it must not raise.
        step: makes a step of all rows that write, and raises only what the executor raises; None is the executor's
            `step` with `choose` behind it.
    """

    def __init__(
        self,
        executor: Any,
        make_chunk: Callable[[list[int]], Any],
        max_waiting: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        may_leave: Callable[[], bool] = lambda: True,
        choose: Choose = choose_each,
        step: Step | None = None,
    ) -> None:
        self._executor = executor
        self._make_chunk = make_chunk
        self._max_waiting = max_waiting
        self._clock = clock
        self._may_leave = may_leave
        self._choose = choose
        self._step_rows = step or _stepping(choose)
        self._order = count()
        self._pace = Pace()
        self._free = list(range(executor.num_slots))
        self._deadlines: dict[Request, float | None] = {}
        """Of every request that has not ended."""
        self._waiting: list[Group] = []
        self._reading: list[Group] = []
        self._round: list[Group] = []
        """Of those that are being read, who has a whole chunk to come before anybody writes on."""
        self._writing: dict[Request, _Writing] = {}

    @property
    def busy(self) -> bool:
        return bool(self._deadlines)

    @property
    def num_free_slots(self) -> int:
        return len(self._free)

    @property
    def num_waiting(self) -> int:
        """Requests without a slot; of those that share a prompt being read, all but one."""
        waiting = sum(len(group.requests) for group in self._waiting)
        return waiting + sum(len(group.requests) - 1 for group in self._reading)

    @property
    def num_running(self) -> int:
        """Requests with a slot."""
        return len(self._reading) + len(self._writing)

    @property
    def is_reading(self) -> bool:
        """Whether the next step reads on in a prompt, which may give no event."""
        return any(group.can_read for group in self._reading)

    def submit(self, request: Request) -> None:
        """Takes a request on.

        Raises:
            RequestError: it has neither prompt nor `find_start`, its `max_tokens` is below 0, or it was submitted and
                has not ended.
            QueueFullError: too many wait; it tells when a slot is expected to be free.
        """
        self.submit_group([request])

    def submit_group(self, requests: Sequence[Request]) -> None:
        """Takes requests on that have one prompt, start, adapter and priority between them; the prompt is read once.

        Each begins as it finds a slot, the first where the prompt was read. All are taken, or none.

        Raises:
            RequestError, QueueFullError: as for `submit`, or they differ in what they must share.
        """
        check_group(requests)
        if any(request in self._deadlines for request in requests):
            raise RequestError("a request is submitted twice; it must end before it may be submitted again")
        self.require_room(len(requests))
        arrival = self._now()
        self._waiting.append(Group(list(requests), arrival))
        for request in requests:
            timeout = request.timeout_seconds
            self._deadlines[request] = None if timeout is None else arrival.seconds + timeout

    def require_room(self, num_requests: int) -> None:
        """RequestError where so many can never be taken at once, QueueFullError where they cannot be taken now."""
        if self._max_waiting is not None:
            num_ahead = self.num_waiting - len(self._free)
            check_room(num_requests, num_ahead, self._max_waiting, self._executor.num_slots, self.expected_seconds)

    def let_end(self, request: Request) -> None:
        """Ends a request at the next step with what it has, as where its time is over; nothing where it has ended."""
        if request in self._deadlines:
            self._deadlines[request] = self._clock()

    def cancel(self, request: Request, wants_state: bool = True) -> Remainder | None:
        """Ends a request now, wherever it stands; None where it has ended before.

        `request.resumed(remainder)`, submitted here or elsewhere, goes on as if it had never stopped.

        Args:
            wants_state: where not, nothing is copied and the remainder has no state.
        """
        if request not in self._deadlines:
            return None
        del self._deadlines[request]
        if request in self._writing:
            return self._stop_writing(self._writing[request], wants_state)
        group = next(group for group in (*self._waiting, *self._reading) if request in group.requests)
        group.requests.remove(request)
        remainder = Remainder(request.state, list(request.prompt), 0)
        if group in self._waiting:
            if not group.requests:
                self._waiting.remove(group)
            return remainder
        if group.has_begun:
            state = self._executor.export_state(group.slot) if wants_state else None
            remainder = Remainder(state, group.prompt[group.num_read :], 0)
        if not group.requests:
            self._reading.remove(group)
            self._release(group.slot)
        return remainder

    def has_ended(self, request: Request) -> bool:
        """Whether nothing more is written, though the last event may still have to come."""
        return request not in self._deadlines or (request in self._writing and self._writing[request].ended is not None)

    def copy_state(self, request: Request) -> Any:
        """Arrays of the state of a request that writes: it has read all but the last token."""
        return self._executor.export_state(self._writing[request].slot)

    def step(self) -> list[Event]:
        """Gives free slots to those that wait, reads a chunk of one prompt, and writes up to one token of all others.

        Where nobody writes, a whole chunk of every prompt comes first, one a step; who begins meanwhile waits for the
        others, so that they write together.

        A request's faults end it alone, with an event. Errors of the executor that are nobody's fault are raised.
        """
        events = self._end_late() + self._leave()
        writing = [row for row in self._writing.values() if row.ended is None]
        events += self._admit()
        for group in list(self._reading):
            events += self._advance(group)
        readable = [group for group in self._reading if group.can_read]
        self._round = [group for group in self._round if group in readable] or ([] if writing else readable)
        group = most_urgent(self._round or readable, self._clock())
        if group is not None:
            group.turn = self._now()
            if group in self._round:
                self._round.remove(group)
                return events + self._read_chunk(group, WHOLE_CHUNK_TOKENS)
            events += self._read_at_pace(group)
        return events + self._write(writing) if writing else events

    def expected_seconds(self) -> float | None:
        """Seconds until a slot is free if answers run to their `max_tokens`; None while no step has been measured."""
        if len(self._free) > self.num_waiting:
            return 0.0
        step_seconds = self._pace.round_seconds(bool(self._reading))
        if step_seconds is None:
            return None
        num_steps = {
            row.request: 0 if row.ended else row.request.max_tokens - row.num_written for row in self._writing.values()
        }
        for group in self._reading:
            num_chunks = -(-(len(group.prompt) - group.num_read) // self._pace.chunk_tokens)
            num_steps[group.requests[0]] = num_chunks * len(self._reading) + group.requests[0].max_tokens
        seconds = [min(step_seconds * number, self._seconds_left(request)) for request, number in num_steps.items()]
        return min(seconds, default=None)

    def _seconds_left(self, request: Request) -> float:
        deadline = self._deadlines[request]
        return math.inf if deadline is None else max(0.0, deadline - self._clock())

    def _end_late(self) -> list[Event]:
        now, events = self._clock(), []
        late = [request for request, deadline in self._deadlines.items() if deadline is not None and now >= deadline]
        for request in late:
            row = self._writing.get(request)
            if row is not None:
                row.ended = row.ended or "deadline"
                continue
            is_begun = any(group.has_begun and request in group.requests for group in self._reading)
            wants_state = not is_begun or (request.wants_state and self._may_leave())
            events.append(TokenEvent(request, None, "deadline", self.cancel(request, wants_state)))
        return events

    def _leave(self) -> list[Event]:
        """Ends the rows whose answer is over, as far as their states may leave."""
        over: list[tuple[_Writing, FinishReason]]
        over = [(row, row.ended) for row in self._writing.values() if row.ended is not None]
        events: list[Event] = [self._end(row, None, reason) for row, reason in over if self._can_stop(row)]
        return events

    def _can_stop(self, row: _Writing) -> bool:
        return not row.request.wants_state or self._may_leave()

    def _admit(self) -> list[Event]:
        events: list[Event] = []
        while self._free and (group := self._next_waiting()) is not None:
            slot = heapq.heappop(self._free)
            if group.read_prompt is not None:
                if group.first.adapter is not None:
                    self._executor.use_adapter(slot, group.first.adapter)
                self._executor.import_state(slot, group.read_prompt.arrays)
                events.append(self._begin(group, slot, group.read_prompt.logits))
                if not group.requests:
                    self._waiting.remove(group)
                continue
            self._waiting.remove(group)
            group.slot, group.turn = slot, self._now()
            self._reading.append(group)
        return events

    def _advance(self, group: Group) -> list[Event]:
        """All that a prompt with a slot can do without reading: begin, hand its state over, begin the answer."""
        try:
            if not group.has_begun and not self._begin_reading(group):
                return []
        except Exception as error:  # The start is the request's own; the other rows have theirs.
            self._reading.remove(group)
            return self._give_up(group, error)
        events: list[Event] = []
        if group.is_due:
            if not self._may_leave():
                return []
            state = self._executor.export_state(group.slot)
            events.append(StateEvent(group.requests[0], group.keep_at.pop(0), state))
        return events + self._end_reading(group) if group.is_read else events

    def _begin_reading(self, group: Group) -> bool:
        start = group.find_start()
        if start is None:
            return False
        if group.first.adapter is not None:
            self._executor.use_adapter(group.slot, group.first.adapter)
        if start.state is not None:
            self._executor.import_state(group.slot, start.state)
        group.begin(start)
        return True

    def _end_reading(self, group: Group) -> list[Event]:
        """The prompt is read: its first answer begins, or it ends where nothing is to be written."""
        self._reading.remove(group)
        if group.first.max_tokens == 0:
            self._release(group.slot)
            for request in group.requests:
                del self._deadlines[request]
            return [TokenEvent(request, None, "length", Remainder(None, [], 0)) for request in group.requests]
        if len(group.requests) > 1:
            group.read_prompt = ReadPrompt(self._executor.export_state(group.slot), group.logits)
            group.turn = group.arrival
            self._waiting.append(group)
        return [self._begin(group, group.slot, group.logits)]

    def _next_waiting(self) -> Group | None:
        """One shared prompt at a time is being read or waits with its state, so that only one such state is held."""
        is_sharing = any(len(group.requests) > 1 for group in self._reading)
        is_sharing |= any(group.read_prompt is not None for group in self._waiting)
        groups = (g for g in self._waiting if g.read_prompt is not None or len(g.requests) == 1 or not is_sharing)
        return most_urgent(groups, self._clock())

    def _read_at_pace(self, group: Group) -> list[Event]:
        """Reads a chunk as long as those that write can bear."""
        num_tokens = self._pace.chunk_tokens
        is_whole = group.chunk_end(num_tokens) - group.num_read == num_tokens
        start = self._clock()
        events = self._read_chunk(group, num_tokens)
        if is_whole:
            self._pace.read_chunk(self._clock() - start)
        return events

    def _now(self) -> Turn:
        return Turn(self._clock(), next(self._order))

    def _read_chunk(self, group: Group, num_tokens: int) -> list[Event]:
        first, end, scorer = group.num_read, group.chunk_end(num_tokens), group.first.scorer
        wanted = "last" if end == len(group.prompt) and group.first.max_tokens else "none"
        chunk = self._make_chunk(group.prompt[first:end])
        try:
            logits = self._executor.prefill([group.slot], chunk, None, wanted if scorer is None else "all")
        except GriffinError as error:
            self._reading.remove(group)
            return self._give_up(group, error)
        if scorer is not None:
            scorer.score(first, logits)
        group.num_read = end
        if group.is_read:
            group.logits = None if logits is None else logits[0, -1:]
        return self._advance(group)

    def _give_up(self, group: Group, error: Exception) -> list[Event]:
        """All requests of a group end, since its prompt or state cannot be read."""
        self._release(group.slot)
        for request in group.requests:
            del self._deadlines[request]
        return [TokenEvent(request, None, "error", error=error) for request in group.requests]

    def _begin(self, group: Group, slot: int, logits: Any) -> Event:
        """The next request of the group writes its first token."""
        row = _Writing(group.requests.pop(0), slot)
        self._writing[row.request] = row
        (token,) = self._choose([row.request.chooser], logits)
        return self._go_on(row, token)

    def _write(self, rows: list[_Writing]) -> list[Event]:
        start = self._clock()
        slots, tokens = [row.slot for row in rows], [row.last_token for row in rows]
        try:
            chosen = self._step_rows(self._executor, [row.request.chooser for row in rows], slots, tokens)
        except GriffinError as error:
            if len(rows) == 1:
                return [self._fail(rows[0], error)]
            # Executors refuse before they compute, so each can be tried on its own, and who is at fault ends alone.
            return [event for row in rows for event in self._write([row])]
        self._pace.stepped(self._clock() - start)
        return [self._go_on(row, token) for row, token in zip(rows, chosen, strict=True) if token is not None]

    def _go_on(self, row: _Writing, token: int | Exception) -> TokenEvent:
        request = row.request
        if isinstance(token, Exception):
            return self._fail(row, token)
        try:
            is_over = token in request.end_ids or request.chooser.is_complete
        except Exception as error:
            return self._fail(row, error)
        row.last_token = token
        row.num_written += 1
        if is_over:
            row.ended = "stop"
        elif row.num_written >= request.max_tokens:
            row.ended = "length"
        if row.ended is None or not self._can_stop(row):
            return TokenEvent(request, token)
        return self._end(row, token, row.ended)

    def _end(self, row: _Writing, token: int | None, reason: FinishReason) -> TokenEvent:
        del self._deadlines[row.request]
        return TokenEvent(row.request, token, reason, self._stop_writing(row, row.request.wants_state))

    def _fail(self, row: _Writing, error: Exception) -> TokenEvent:
        del self._deadlines[row.request], self._writing[row.request]
        self._release(row.slot)
        return TokenEvent(row.request, None, "error", error=error)

    def _stop_writing(self, row: _Writing, wants_state: bool) -> Remainder:
        del self._writing[row.request]
        state = self._executor.export_state(row.slot) if wants_state else None
        self._release(row.slot)
        return Remainder(state, [row.last_token], row.num_written)

    def _release(self, slot: int) -> None:
        self._executor.release(slot)
        heapq.heappush(self._free, slot)


def _stepping(choose: Choose) -> Step:
    def step(
        executor: Any, choosers: Sequence[Any], slots: Sequence[int], tokens: Sequence[int]
    ) -> Sequence[int | Exception | None]:
        return choose(choosers, executor.step(slots, tokens))

    return step
