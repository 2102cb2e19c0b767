"""What all routes share: the model and its adapters, the worker, the store, the settings."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from griffinlm.generation.job import End, Job
from griffinlm.generation.store import StateNotFoundError, StateStore, StoreError
from griffinlm.language_model import LanguageModel
from griffinlm.serve.errors import ApiError, DamagedRecordError
from griffinlm.serve.fields import MOST_ANSWERS
from griffinlm.serve.logs import log_event, log_fault
from griffinlm.serve.records import Records
from griffinlm.serve.settings import Settings
from griffinlm.serve.stream import while_connected
from griffinlm.serve.threads import Threads
from griffinlm.serve.turns import Turns
from griffinlm.serve.worker import Answers, Worker
from griffinlm.text import Tokenizer

TEXT_THREADS = 4

R = TypeVar("R")


@dataclass
class Served:
    """One model behind the routes."""

    name: str
    model: LanguageModel
    settings: Settings
    worker: Worker
    store: StateStore
    records: Records
    turns: Turns
    state_key: bytes
    """What states that leave are signed with."""
    created: int = field(default_factory=lambda: int(time.time()))
    _texts: Threads = field(default_factory=lambda: Threads(TEXT_THREADS, "griffinlm-text"))
    _records: Threads = field(default_factory=lambda: Threads(1, "griffinlm-records"))
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.model.tokenizer

    @property
    def most_answers(self) -> int:
        """To one request: those that are written and that may wait where nobody else is, at most a key's share."""
        num_places = self.worker.service.num_slots + self.settings.most_waiting
        return min(MOST_ANSWERS, num_places, self.settings.most_per_key or MOST_ANSWERS)

    @property
    def model_names(self) -> dict[str, str | None]:
        """Adapters by the names that requests call models by; the model itself has none."""
        return {self.name: None} | {f"{self.name}:{adapter}": adapter for adapter in self.model.adapter_names}

    def adapter(self, model_name: str) -> str | None:
        """The adapter that a request means by `MODEL` or `MODEL:ADAPTER`; ApiError where there is none."""
        names = self.model_names
        if model_name not in names:
            raise ApiError(
                404,
                f"there is no model {model_name[:100]!r}; there are {', '.join(names)}"[:1000],
                param="model",
                code="model_not_found",
            )
        return names[model_name]

    async def on_text_thread(self, tenant: str, function: Callable[..., R], *arguments: Any) -> R:
        """What a function of texts or of the store gives, off the event loop: a long one takes a while."""
        return await self._texts.run(tenant, function, *arguments)

    async def on_record_thread(self, tenant: str, function: Callable[..., R], *arguments: Any) -> R:
        """What a function of records gives, off the event loop: it may wait for a disk."""
        return await self._records.run(tenant, function, *arguments)

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Does work that no client waits for; its faults are logged."""

        async def run() -> None:
            try:
                await work
            except Exception as error:
                log_fault("work in the background failed", error)

        task = asyncio.ensure_future(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def submit(self, job: Job, is_asked_for: bool = True) -> Answers:
        return await self.worker.submit(job, is_asked_for)

    async def close(self) -> None:
        """Ends what runs beside the answers, then the service, the records and the store."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.worker.stop()
        self._texts.shutdown()
        self._records.shutdown()
        self.records.close()
        self.store.close()


@dataclass(frozen=True)
class Asker:
    """Who asks, and for what server."""

    served: Served
    tenant: str
    request: Request

    async def ends(self, jobs: Sequence[Job]) -> list[list[End]]:
        """All answers of each job, run to the end side by side; they are dropped where the client goes away.

        Raises:
            GriffinError: a job is refused, or one of its answers failed.
        """
        return await while_connected(self.request, self._ends(jobs))

    async def on_text_thread(self, function: Callable[..., R], *arguments: Any) -> R:
        """What a function of texts gives, off the event loop; it does not begin where the client has gone away."""
        return await while_connected(self.request, self.served.on_text_thread(self.tenant, function, *arguments))

    async def on_record_thread(self, function: Callable[..., R], *arguments: Any) -> R:
        """What a function of records gives, off the event loop: it may wait for a disk."""
        return await self.served.on_record_thread(self.tenant, function, *arguments)

    async def delete(self, record_id: str, kind: str | None = None) -> None:
        """Removes a record, and the states that nothing else stands on; ApiError where there is none."""
        await self.on_record_thread(self._delete, record_id, kind)

    def _delete(self, record_id: str, kind: str | None) -> None:
        records = self.served.records
        try:
            record = records.get(self.tenant, record_id, kind)
        except DamagedRecordError as error:
            log_event("a damaged conversation is deleted without its states", fault=str(error))
        else:
            # States first: after a crash between the two the record is still there to be deleted.
            self.delete_states(record.adapter, records.unused(self.tenant, record.state_ids, besides=record_id))
        records.delete(self.tenant, record_id)

    def delete_states(self, adapter: str | None, state_ids: Iterable[str]) -> None:
        """Removes states as far as they can be, none of an adapter that is not loaded; for the record thread."""
        served = self.served
        if adapter not in served.model_names.values():
            return
        view = served.store.view(served.model.with_adapter(adapter))
        for state_id in state_ids:
            try:
                view.delete(self.tenant, state_id)
            except StateNotFoundError:
                continue
            except StoreError as error:
                log_event("a state could not be deleted", fault=str(error))

    async def _ends(self, jobs: Sequence[Job]) -> list[list[End]]:
        all_answers: list[Answers] = []
        reading: list[asyncio.Task[list[End]]] = []
        try:
            for job in jobs:
                all_answers.append(await self.served.submit(job))
                # All are read as they come: those of one job must not pile up while another's are waited for.
                reading.append(asyncio.ensure_future(_ends_of(all_answers[-1])))
            return await asyncio.gather(*reading)
        finally:
            for task in reading:
                task.cancel()
            for answers in all_answers:
                answers.leave()


async def _ends_of(answers: Answers) -> list[End]:
    ends = [event async for event in answers if isinstance(event, End)]
    for end in ends:
        if end.error is not None:
            raise end.error
    require_time(ends)
    return sorted(ends, key=lambda end: end.answer)


def require_time(ends: Sequence[End]) -> None:
    """Refuses answers that were cut short."""
    if any(end.finish_reason == "deadline" for end in ends):
        raise ApiError(408, "the answer was cut short: it took too long, or the server is about to end", code="timeout")


def _asker(request: Request) -> Asker:
    return Asker(request.app.state.served, request.state.tenant, request)


AskerDependency = Annotated[Asker, Depends(_asker)]
