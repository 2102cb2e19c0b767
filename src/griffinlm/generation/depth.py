"""Requests whose tokens stand at depths of their own in the loops of a model. Knows token ids and slot numbers only."""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from griffinlm.errors import GriffinError
from griffinlm.generation.pace import WHOLE_CHUNK_TOKENS
from griffinlm.generation.queue import check_group
from griffinlm.generation.request import Choose, Remainder, Request, RequestError, TokenEvent, choose_each

Batching = Literal["depth", "sequence", "lock_step"]


@dataclass(eq=False)
class _Row:
    request: Request
    slot: int
    token: int
    """The last of the answer or, before it, of the prompt: the one in the loops."""
    depth: int = 0
    """Loops that the token has been through."""
    num_written: int = 0


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

    def cancel(self, request: Request) -> Remainder | None:
        """Ends a request now; None where it has ended before. `request.resumed(remainder)` goes on exactly there."""
        if request in self._waiting:
            self._waiting.remove(request)
            return Remainder(request.state, list(request.prompt), 0)
        if request not in self._rows:
            return None
        row = self._rows[request]
        if not row.depth:
            return self._stop(row)
        # What has begun is finished, so that the remainder's state stands behind a whole token.
        self._executor.leave([row.slot])
        state = self._executor.export_state(row.slot)
        self._drop(row)
        return Remainder(state, [row.token], row.num_written)

    def step(self) -> list[TokenEvent]:
        """Fills free slots, runs one loop of the rows whose turn it is, and writes the tokens of those at its end.

        A request's faults end it alone, with an event. Errors of the executor that are nobody's fault are raised.
        """
        events = self._admit()
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
