"""Many conversations on one model, in an exact amount of memory."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np

from griffinlm.generation.answering import GenerationError, end_ids
from griffinlm.generation.budget import MemoryUse
from griffinlm.generation.checking import checked_options, whole_numbers
from griffinlm.generation.completion import with_last_pending
from griffinlm.generation.job import Counts, End, Event, Job
from griffinlm.generation.keeping import SPARED_BY_RESUMED, Chain, Keeper, Kept
from griffinlm.generation.queue import QueueFullError
from griffinlm.generation.request import Request, StateEvent, TokenEvent
from griffinlm.generation.running import Row, Running, ServedModel, find_in_store, step_rows, tokenizer_of, write_rows
from griffinlm.generation.scheduler import Scheduler
from griffinlm.generation.starting import Starter
from griffinlm.generation.store import StateStore
from griffinlm.generation.suspended import Suspended
from griffinlm.state import State, state_bytes

DEFAULT_PLACES = 4


class GenerationService:
    """Runs jobs on one executor and keeps the states that they reach.

    One thread calls everything here. `step` brings all running answers one token forward and never waits for a disk:
    what the store reads and writes is done on two threads beside it, and an answer's end is told once its states are
    acknowledged. A document begins at the longest kept state that has read its beginning.

    Args:
        store: of the same model; None keeps nothing.
        capacity: tokens that a document may have, with models that have global attention; the others take none.
        max_waiting: answers that may wait beyond those for which slots are free; None is no limit.
        num_places: states that may stand beside slots and store. One place is spared for a state on its way to a slot,
            one for a state that leaves its slot; the others may be taken by resumed answers that wait.
        boundary_tokens: a state is kept at least after every so many tokens.
        clock: seconds that never go back.

    Raises:
        StateError: the store is another model's, or the capacity is missing, or of no use.
    """

    def __init__(
        self,
        model: ServedModel,
        store: StateStore | None = None,
        *,
        num_slots: int,
        capacity: int | None = None,
        max_waiting: int | None = None,
        num_places: int = DEFAULT_PLACES,
        boundary_tokens: int = 512,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        numbers = (("num_slots", num_slots, 1), ("num_places", num_places, 3), ("boundary_tokens", boundary_tokens, 1))
        for name, value, least in numbers:
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise GenerationError(f"{name} is {value!r}; it must be a whole number, {least} or above")
        if store is not None:
            model.identity.require_same(store.model.identity, "the store")
        self.model, self.store, self.capacity = model, store, capacity
        self.state_bytes = state_bytes(model.config, capacity, model.window_dtype, model.precision)
        self._extra_bytes = model.engine.extra(capacity).of(num_slots)
        self.num_slots, self.boundary_tokens = num_slots, boundary_tokens
        self.counts = Counts()
        self._executor = model.engine.executor(num_slots, capacity)
        self._keeper = Keeper(num_places)
        self._scheduler = Scheduler(
            self._executor,
            lambda ids: np.asarray([ids], np.int64),
            max_waiting,
            clock,
            self._keeper.take_place,
            write_rows,
            step_rows,
        )
        self._running: dict[Job, Running] = {}
        self._rows: dict[Request, Row] = {}
        self._ending: list[Row] = []
        """Answers whose states are being written."""
        self._starter = Starter(self._keeper, boundary_tokens, capacity, self.counts)

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do or to wait for."""
        return self._scheduler.busy or bool(self._ending)

    @property
    def num_running(self) -> int:
        """Answers with a slot."""
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        """Answers without a slot."""
        return self._scheduler.num_waiting

    @property
    def num_free_slots(self) -> int:
        return self._scheduler.num_free_slots

    def expected_seconds(self) -> float | None:
        """Seconds until a slot is free if answers run to their `max_tokens`; None while that is unknown."""
        return self._scheduler.expected_seconds()

    def memory(self) -> MemoryUse:
        """Bytes of all states that this service and its store hold ready. It waits for the store."""
        return self.memory_with(0 if self.store is None else self.store.counts().memory_bytes)

    def memory_with(self, store_bytes: int) -> MemoryUse:
        """The same where the store's bytes are known already, without waiting for it."""
        self._keeper.settle()
        slot_bytes = self.num_slots * self.state_bytes + self._extra_bytes
        return MemoryUse(slot_bytes, self._keeper.num_taken * self.state_bytes, store_bytes)

    def submit(self, job: Job) -> Job:
        """Takes a job on.

        Raises:
            GriffinError: it cannot be run as it is.
            QueueFullError: too many wait; it tells when a slot is expected to be free.
        """
        return self._submit(job, None)

    def resume(
        self,
        suspended: Suspended,
        tenant: str,
        *,
        keep: bool = True,
        priority: int = 0,
        timeout_seconds: float | None = None,
    ) -> Job:
        """Goes on with a suspended answer as if it had never stopped; pieces go on behind those given out before.

        Raises:
            StateError: it belongs to another model or adapter.
            QueueFullError: too many wait, or too many resumed ones with their states.
        """
        job = Job(
            tenant,
            suspended.token_ids,
            suspended.options,
            adapter=suspended.adapter,
            boundaries=suspended.boundaries,
            keep=keep,
            prompt_log_probabilities=suspended.num_prompt_alternatives,
            priority=priority,
            timeout_seconds=timeout_seconds,
        )
        return self._submit(job, suspended)

    def let_end(self, job: Job) -> None:
        """Ends a job's answers at the next step with what they have, with finish reason "deadline"."""
        running = self._running.get(job)
        for row in () if running is None else running.rows:
            self._scheduler.let_end(row.request)

    def cancel(self, job: Job) -> bool:
        """Ends a job now, without another event for it; False where it had ended or was never submitted."""
        running = self._running.pop(job, None)
        if running is None:
            return False
        for row in running.rows:
            self._rows.pop(row.request, None)
            self._scheduler.cancel(row.request, wants_state=False)
        self._ending = [row for row in self._ending if row.running is not running]
        self._let_go(running)
        return True

    def suspend(self, job: Job) -> Suspended | None:
        """Takes a job out, wherever it stands; None where its answer is written and only its end is still to come.

        Raises:
            GenerationError: the job has several answers, has ended, or was never submitted.
            StoreError: it waits for a kept state that cannot be given.
        """
        running = self._running.get(job)
        if running is None:
            raise GenerationError("the job has ended or was never submitted, so it cannot be suspended")
        if job.num_answers != 1:
            raise GenerationError(f"the job has {job.num_answers} answers; only a job of one answer can be suspended")
        (row,) = running.rows
        if row.finish_reason is not None or self._scheduler.has_ended(row.request):
            return None
        suspended = self._suspended_waiting(running) if not running.has_begun else self._suspended(row)
        self.cancel(job)
        return suspended

    def step(self, timeout_seconds: float = 0.0) -> list[Event]:
        """Brings everything forward by at most one token an answer; gives what is to be told, in order.

        Args:
            timeout_seconds: how long to wait for the store where there is nothing else to do.
        """
        self._keeper.settle()
        told: list[Event] = []
        happened = self._scheduler.step() if self._scheduler.busy else []
        for event in happened:
            row = self._rows[event.request]
            if isinstance(event, StateEvent):
                self._keep_place(row.running, event.num_read, event.state)
            else:
                self._note_token(row, event)
                piece = row.piece()
                told += [] if piece is None else [piece]
        told += self._ends()
        if not (told or happened or self._scheduler.is_reading) and timeout_seconds > 0:
            fetched = [running.fetched for running in self._running.values() if running.fetched is not None]
            waited = [future for row in self._ending for future in row.futures if not future.done()]
            self._keeper.wait([*fetched, *waited], timeout_seconds)
        return told

    def close(self) -> None:
        """Drops all jobs and waits for what is being written; the store stays open."""
        for job in list(self._running):
            self.cancel(job)
        self._keeper.close()

    # Submitting.

    def _submit(self, job: Job, suspended: Suspended | None) -> Job:
        if job in self._running:
            raise GenerationError("a job is submitted twice; it must end before it may be submitted again")
        view = self.model if job.adapter is None else self.model.with_adapter(job.adapter)
        if suspended is not None:
            view.identity.require_same(suspended.state.identity, "the suspended answer")
        token_ids = whole_numbers("token_ids", job.token_ids)
        options = checked_options(job, view, token_ids, has_store=self.store is not None)
        self._starter.require_capacity(len(token_ids), job)
        self._scheduler.require_room(job.num_answers)
        store = None if self.store is None else self.store.view(view)
        running = Running(job, view, options, token_ids, suspended, store)
        find_start = partial(self._starter.find, running)
        for index in range(job.num_answers):
            num_told = 0 if suspended is None else suspended.num_told
            row = Row(running, index, running.new_completion(index), Chain(running.chain), num_told)
            row.request = Request(
                token_ids,
                row,
                self._num_to_write(running, row),
                end_ids(tokenizer_of(view)),
                priority=job.priority,
                timeout_seconds=job.timeout_seconds,
                adapter=view.adapter,
                find_start=find_start,
                scorer=running.scores,
                wants_state=running.keeps,
            )
            running.rows.append(row)
        if suspended is not None and not self._keeper.take_place(SPARED_BY_RESUMED):
            raise QueueFullError("as many resumed answers as may be wait with their states", self.expected_seconds())
        self._scheduler.submit_group([row.request for row in running.rows])
        self._running[job] = running
        self._rows.update({row.request: row for row in running.rows})
        return job

    def _num_to_write(self, running: Running, row: Row) -> int:
        return 0 if running.job.options is None else running.options.max_tokens - len(row.completion.token_ids)

    # What happened in a step.

    def _keep_place(self, running: Running, num_read: int, arrays: Any) -> None:
        """A place in the document has been reached."""
        document, job = running.token_ids, running.job
        if num_read == len(document) - 1:
            if job.extract is not None:
                running.extracted = job.extract(arrays)
            arrays = with_last_pending(arrays, document[-1])
        if not running.keeps:
            self._keeper.free_place()
            return
        running.kept[num_read] = self._keep(running, document[:num_read], arrays, running.chain)

    def _keep(self, running: Running, token_ids: list[int], arrays: Any, chain: Chain) -> "Future[Kept]":
        assert running.store is not None
        return self._keeper.keep(running.store, running.job.tenant, token_ids, arrays, chain)

    def _note_token(self, row: Row, event: TokenEvent) -> None:
        self.counts.num_written_tokens += event.token is not None
        if event.finish_reason is not None:
            self._note_end(row, event)
            return
        is_place = row.running.keeps and row.num_read % self.boundary_tokens == 0
        # A place on the way is not worth waiting for.
        if is_place and not self._scheduler.has_ended(row.request) and self._keeper.take_place():
            arrays = self._scheduler.copy_state(row.request)
            row.kept[row.num_read] = self._keep(row.running, row.document()[:-1], arrays, row.chain)

    def _note_end(self, row: Row, event: TokenEvent) -> None:
        assert event.finish_reason is not None
        del self._rows[row.request]
        reason = row.completion.finish(event.finish_reason)
        row.finish_reason, row.error = reason if event.error is None else "error", event.error
        running, remainder = row.running, event.remainder
        if remainder is not None and remainder.state is not None:
            arrays, document = remainder.state, row.document()
            num_read = int(arrays["num_tokens"][0])
            if num_read == len(document) - 1:
                arrays = with_last_pending(arrays, document[-1])
            if row.completion.token_ids:
                self._starter.note_reply(row)
            row.kept[num_read] = self._keep(running, document[:num_read], arrays, row.chain)
        if all(other.finish_reason is not None for other in running.rows):
            self._let_go(running)
        self._ending.append(row)

    def _let_go(self, running: Running) -> None:
        """Of what a job that has not begun holds in places."""
        if running.fetched is not None:
            self._keeper.abandon(running.fetched)
        if running.suspended is not None:
            self._keeper.free_place()
        running.fetched = running.suspended = None

    def _ends(self) -> list[End]:
        """Of the answers whose states are all kept or refused."""
        ready = [row for row in self._ending if all(future.done() for future in row.futures)]
        self._ending = [row for row in self._ending if row not in ready]
        for row in ready:
            running = row.running
            running.rows.remove(row)
            futures = [*row.kept.values(), *(() if running.rows else running.kept.values())]
            for future in futures:
                is_kept = future.result().id is not None
                self.counts.num_states_kept += is_kept
                self.counts.num_states_not_kept += not is_kept
            if not running.rows:
                del self._running[running.job]
        return [row.end() for row in ready]

    # Suspending.

    def _suspended(self, row: Row) -> Suspended:
        """Of an answer whose document is being read or that is being written."""
        remainder = self._scheduler.cancel(row.request)
        assert remainder is not None
        assert remainder.state is not None
        return self._suspended_at(row.running, State(remainder.state, row.running.model.identity))

    def _suspended_waiting(self, running: Running) -> Suspended:
        if running.suspended is not None:
            return running.suspended
        if running.job.state_id is not None:
            assert running.store is not None
            found = find_in_store(running.store, running.job, running.token_ids, running.is_read_anew)
            running.know(found.token_ids)
            if found.state is not None:
                return self._suspended_at(running, State(found.state.arrays, running.model.identity).with_pending([-1]))
        return self._suspended_at(running, running.model.new_state(capacity=self.capacity))

    def _suspended_at(self, running: Running, state: State) -> Suspended:
        (row,) = running.rows
        return Suspended(
            state=state,
            token_ids=running.token_ids,
            written_ids=row.completion.token_ids,
            num_told=row.num_told,
            options=None if running.job.options is None else running.options,
            adapter=running.model.adapter,
            boundaries=running.job.boundaries,
            log_probabilities=row.completion.log_probabilities,
            num_prompt_alternatives=running.job.prompt_log_probabilities,
            prompt_log_probabilities=[] if running.scores is None else running.scores.found,
        )
