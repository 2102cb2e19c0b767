"""Requests whose tokens stand at depths of their own in the loops of a model. Knows token ids and slot numbers only."""

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from griffinlm.errors import GriffinError
from griffinlm.generation.pace import WHOLE_CHUNK_TOKENS
from griffinlm.generation.queue import check_group
from griffinlm.generation.request import Choose, FinishReason, Remainder, Request, RequestError, TokenEvent, choose_each

Batching = Literal["depth", "sequence", "lock_step"]


@dataclass(eq=False)
class _Row:
    request: Request
    slot: int
    depth: int = 0
    """Loops that the row's token has been through."""
    num_written: int = 0
    entering: int | None = None
    """A token that has yet to enter the loops."""


class DepthScheduler:
    """Continuous depth-wise batching (Relaxed Recursive Transformers, arXiv 2410.20672, section 2.4).

    A step runs one loop. With "depth", every row runs it at its own depth: a row that has its token goes on with the
    next from the first loop, and a free slot is filled at once. The other two are what that is compared with: rows
    keep to one token, and one that has left early waits for the others. With "sequence" free slots are filled between
    two tokens, with "lock_step" only when all rows have ended.

    A prompt is read at full depth when its request gets a slot, all but its last token, which enters the loops.

    Args:
        executor: a `griffinlm.executor.LoopExecutor`, used by this scheduler alone.
        make_chunk: turns a list of ids into what the executor's `prefill` takes as tokens of one row.
        choose: gives the tokens of all rows that have left the loops; it must not raise.

    Raises:
        RequestError: the way of batching is unknown.
    """

    def __init__(
        self,
        executor: Any,
        make_chunk: Callable[[list[int]], Any],
        batching: Batching = "depth",
        choose: Choose = choose_each,
    ) -> None:
        if batching not in get_args(Batching):
            raise RequestError(f"batching is {str(batching)[:60]!r}; allowed are {', '.join(get_args(Batching))}")
        self._executor, self._make_chunk, self._choose, self._batching = executor, make_chunk, choose, batching
        self._waiting: deque[Request] = deque()
        self._rows: dict[Request, _Row] = {}
        self._free = list(range(executor.num_slots))
        self.num_rows_by_loop: list[int] = [0] * executor.num_loops
        """Rows that ran each loop in the last step."""

    @property
    def busy(self) -> bool:
        return bool(self._rows or self._waiting)

    def submit(self, request: Request) -> None:
        """Takes a request on; slots go out in order of arrival.

        Raises:
            RequestError: it has no prompt, no token to write, is submitted already, or asks for what only
                `griffinlm.generation.scheduler` does.
        """
        check_group([request])
        if request in self._rows or request in self._waiting:
            raise RequestError("a request is submitted twice; it must end before it may be submitted again")
        if request.max_tokens < 1:
            raise RequestError(f"max_tokens is {request.max_tokens}; depth-wise batching writes at least one token")
        for name in ("find_start", "scorer", "timeout_seconds"):
            if getattr(request, name) is not None:
                raise RequestError(f"the request has a {name}; depth-wise batching takes none")
        self._waiting.append(request)

    def cancel(self, request: Request) -> None:
        """Ends a request now, without an event, wherever its token stands; nothing where it has ended before."""
        if request in self._waiting:
            self._waiting.remove(request)
        elif request in self._rows:
            self._drop(self._rows[request])

    def step(self) -> list[TokenEvent]:
        """Fills free slots, runs one loop of the rows whose turn it is, and writes the tokens of those at its end.

        A request's faults end it alone, with an event. Errors of the executor that are nobody's fault are raised.
        """
        events = self._admit()
        events += self._enter([row for row in self._rows.values() if row.entering is not None])
        begun = [row for row in self._rows.values() if row.depth]
        running = begun if begun and self._batching != "depth" else list(self._rows.values())
        self.num_rows_by_loop = [0] * self._executor.num_loops
        if not running:
            return events
        for row in running:
            self.num_rows_by_loop[row.depth] += 1
        may_leave = self._executor.run_loop([row.slot for row in running])
        done = []
        for row, may in zip(running, may_leave, strict=True):
            row.depth += 1
            if may or row.depth == self._executor.num_loops:
                done.append(row)
        return events + self._write(done) if done else events

    def _admit(self) -> list[TokenEvent]:
        is_open = {
            "depth": True,
            "sequence": not any(row.depth for row in self._rows.values()),
            "lock_step": not self._rows,
        }[self._batching]
        events = []
        while is_open and self._waiting and self._free:
            request = self._waiting.popleft()
            row = _Row(request, heapq.heappop(self._free))
            self._rows[request] = row
            try:
                self._read_prompt(row)
            except GriffinError as error:
                events.append(self._fail(row, error))
        return events

    def _read_prompt(self, row: _Row) -> None:
        request, slot = row.request, row.slot
        if request.adapter is not None:
            self._executor.use_adapter(slot, request.adapter)
        if request.state is not None:
            self._executor.import_state(slot, request.state)
        *before, last = request.prompt
        for start in range(0, len(before), WHOLE_CHUNK_TOKENS):
            chunk = self._make_chunk(before[start : start + WHOLE_CHUNK_TOKENS])
            self._executor.prefill([slot], chunk, None, "none")
        row.entering = last

    def _enter(self, rows: list[_Row]) -> list[TokenEvent]:
        """Puts the tokens of all rows in front of the loops; who is at fault ends alone."""
        if not rows:
            return []
        try:
            self._executor.enter([row.slot for row in rows], [row.entering for row in rows])
        except Exception as error:  # The token is the request's own; the other rows have theirs.
            if len(rows) == 1:
                return [self._fail(rows[0], error)]
            # Executors refuse before they compute, so each can be tried on its own.
            return [event for row in rows for event in self._enter([row])]
        for row in rows:
            row.entering = None
        return []

    def _write(self, rows: list[_Row]) -> list[TokenEvent]:
        """The next token of every row, from where its last one left the loops; those that go on enter it."""
        logits = self._executor.leave([row.slot for row in rows])
        tokens = self._choose([row.request.chooser for row in rows], logits)
        return [self._go_on(row, token) for row, token in zip(rows, tokens, strict=True)]

    def _go_on(self, row: _Row, token: int | Exception) -> TokenEvent:
        request = row.request
        if isinstance(token, Exception):
            return self._fail(row, token)
        row.num_written, row.depth = row.num_written + 1, 0
        try:
            if token in request.end_ids or request.chooser.is_complete:
                return self._end(row, token, "stop")
            if row.num_written == request.max_tokens:
                return self._end(row, token, "length")
        except Exception as error:  # The chooser is the request's own; the other rows have theirs.
            return self._fail(row, error)
        row.entering = token
        return TokenEvent(request, token)

    def _end(self, row: _Row, token: int, reason: FinishReason) -> TokenEvent:
        state = self._executor.export_state(row.slot) if row.request.wants_state else None
        self._drop(row)
        return TokenEvent(row.request, token, reason, Remainder(state, [token], row.num_written))

    def _fail(self, row: _Row, error: Exception) -> TokenEvent:
        self._drop(row)
        return TokenEvent(row.request, None, "error", error=error)

    def _drop(self, row: _Row) -> None:
        """Takes a row's slot back, and with it whatever its tokens owe."""
        del self._rows[row.request]
        self._executor.release(row.slot)
        heapq.heappush(self._free, row.slot)
