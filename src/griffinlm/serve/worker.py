"""The one thread that calls a service, and the answers that the event loop gets from it."""

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TypeVar

from griffinlm.generation.job import End, Event, Job
from griffinlm.generation.queue import QueueFullError
from griffinlm.generation.service import GenerationService
from griffinlm.serve.errors import ApiError
from griffinlm.serve.logs import log_fault

STORE_WAIT_SECONDS = 0.002
"""How long the thread waits for the store alone before it looks for new calls."""
CALLS_SECONDS = 0.02
"""For how long calls that wait are taken before those that write get their next token; one is always taken."""
STOPPED = "the server has stopped computing"
MOST_EVENTS_WAITING = 4096
"""Of each answer, told to a client that does not read them; then it is too slow."""

R = TypeVar("R")


class Answers:
    """The events of one job as the event loop sees them, in a buffer with an end: who reads too slowly is cut off."""

    def __init__(self, job: Job, leave: "Callable[[Answers], None]", is_asked_for: bool = True) -> None:
        self.job, self.is_asked_for = job, is_asked_for
        self._leave = leave
        self._events: deque[Event] = deque()
        self._news = asyncio.Event()
        self._num_to_end = job.num_answers
        self._most_waiting = MOST_EVENTS_WAITING * job.num_answers
        self._fault: ApiError | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be told."""
        return self._num_to_end == 0 or self._fault is not None

    def push(self, event: Event) -> None:
        if self.is_over:
            return
        self._num_to_end -= isinstance(event, End)
        self._events.append(event)
        if len(self._events) > self._most_waiting:
            self.fail(ApiError(408, f"the client reads too slowly: {self._most_waiting} events wait for it"))
            self._leave(self)
        self._news.set()

    def fail(self, fault: ApiError) -> None:
        """Ends the events here."""
        if not self.is_over:
            self._fault = fault
            self._events.clear()
            self._news.set()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            while self._events:
                yield self._events.popleft()
            if self._fault is not None:
                raise self._fault
            if self.is_over:
                return
            self._news.clear()
            await self._news.wait()

    def leave(self) -> None:
        """Nobody wants the rest."""
        if not self.is_over:
            self._num_to_end = 0
            self._leave(self)


class Worker:
    """Runs a service on a thread of its own. Everything else here belongs to the event loop, and never waits for it.

    Args:
        most_per_tenant: answers that one tenant may have open; None is no limit of its own.
    """

    def __init__(self, service: GenerationService, most_per_tenant: int | None = None) -> None:
        self.service, self._most_per_tenant = service, most_per_tenant
        self.has_failed = False
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._answers: dict[Job, Answers] = {}
        """Of the jobs that the service has; the thread's own."""
        self._num_to_end: Counter[Job] = Counter()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="griffinlm-service", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Drops what still runs, and waits until states on their way are written."""

        def stop() -> None:
            self._stopping = True

        self._calls.put(stop)
        await asyncio.to_thread(self._thread.join)

    async def call(self, function: Callable[[], R]) -> R:
        """What a function gives on the service's thread."""
        future: Future[R] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                if self.has_failed:
                    raise ApiError(503, STOPPED, code="unavailable")
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        self._calls.put(run)
        return await asyncio.wrap_future(future)

    async def submit(self, job: Job, is_asked_for: bool = True) -> Answers:
        """Takes a job on.

        Args:
            is_asked_for: by a client; else it takes nothing of the tenant's share, and no place in the queue.

        Raises:
            GriffinError: the service refuses it.
            QueueFullError: too many answers wait, the tenant has too many open, or nobody asked for it and no slot is
                free for it.
        """
        answers = Answers(job, self._forget, is_asked_for)

        def submit() -> None:
            if is_asked_for:
                self._require_share(job)
            else:
                self._require_free_slot()
            self.service.submit(job)
            self._answers[job], self._num_to_end[job] = answers, job.num_answers

        try:
            await self.call(submit)
        except asyncio.CancelledError:
            self._forget(answers)
            raise
        return answers

    def _forget(self, answers: Answers) -> None:
        """Ends a job that nobody waits for, if it is still there."""

        def cancel() -> None:
            if self._answers.pop(answers.job, None) is not None:
                del self._num_to_end[answers.job]
                self.service.cancel(answers.job)

        self._calls.put(cancel)

    def let_end(self) -> None:
        """Ends all answers with what they have."""

        def end() -> None:
            for job in self._answers:
                self.service.let_end(job)

        self._calls.put(end)

    # On the thread.

    def _require_share(self, job: Job) -> None:
        most = self._most_per_tenant
        others = (other for other in self._answers.values() if other.is_asked_for and other.job.tenant == job.tenant)
        num_open = sum(other.job.num_answers for other in others)
        if most is not None and num_open + job.num_answers > most:
            message = (
                f"{num_open} answers are open for this key, {job.num_answers} more asked for; at most {most} may be"
            )
            raise QueueFullError(message, self.service.expected_seconds())

    def _require_free_slot(self) -> None:
        num_free, num_waiting = self.service.num_free_slots, self.service.num_waiting
        if num_free <= num_waiting:
            message = f"{num_free} slots are free and {num_waiting} answers wait for one"
            raise QueueFullError(message, self.service.expected_seconds())

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._take_calls()
                events = self.service.step(STORE_WAIT_SECONDS)
                if events:
                    self._tell(self._deliver, [(self._answers_of(event), event) for event in events])
        except Exception as error:
            log_fault("the service's thread ended", error)
            self.has_failed = True
            self._tell(self._fail, list(self._answers.values()))
            self._answers.clear()
        while not self._stopping:
            self._calls.get()()
        self.service.close()

    def _take_calls(self) -> None:
        """Those that wait, for a while; the first is waited for where the service has nothing to do."""
        try:
            call = self._calls.get(block=not self.service.busy)
            end = time.monotonic() + CALLS_SECONDS
            call()
            while not self._stopping and time.monotonic() < end:
                self._calls.get_nowait()()
        except Empty:
            return

    def _answers_of(self, event: Event) -> Answers:
        answers = self._answers[event.job]
        self._num_to_end[event.job] -= isinstance(event, End)
        if not self._num_to_end[event.job]:
            del self._answers[event.job], self._num_to_end[event.job]
        return answers

    def _tell(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            # The loop is closed; nobody is left to be told.
            return

    # On the event loop.

    def _deliver(self, told: list[tuple[Answers, Event]]) -> None:
        for answers, event in told:
            answers.push(event)

    def _fail(self, unfinished: list[Answers]) -> None:
        for answers in unfinished:
            answers.fail(ApiError(500, STOPPED, code="internal_error"))
