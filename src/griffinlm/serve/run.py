"""From settings to a running server, and its end."""

import asyncio
import socket
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from griffinlm.edge.memory import available_bytes
from griffinlm.generation.budget import plan_memory
from griffinlm.generation.service import GenerationService
from griffinlm.generation.store import StateStore
from griffinlm.language_model import LanguageModel
from griffinlm.serve.app import create_app
from griffinlm.serve.errors import ServeError
from griffinlm.serve.guard import WRITE_SECONDS, Guard
from griffinlm.serve.keys import ApiKeys, state_key
from griffinlm.serve.logs import log_event, start_logs
from griffinlm.serve.records import MOST_BYTES, Records
from griffinlm.serve.served import Served
from griffinlm.serve.settings import Settings
from griffinlm.serve.turns import Turns
from griffinlm.serve.worker import Worker
from griffinlm.state import state_bytes

LAST_SECONDS = 10
"""For answers to be told that they end here."""
SHARE_OF_CONVERSATIONS = 8
"""What was said takes at most so great a part of the memory budget where there is no state directory: an eighth."""
LONGEST_HEAD_BYTES = 64 << 10
BACKLOG = 2048


def serve(model: LanguageModel, name: str, settings: Settings) -> None:
    """Answers requests until the process is told to end (SIGTERM, SIGINT).

    Raises:
        GriffinError: the address is taken, a file cannot be used, or the memory budget holds nothing.
    """
    keys = None if settings.api_key_file is None else ApiKeys.from_file(settings.api_key_file)
    listener = _listener(settings.host, settings.port)
    served = build(model, name, settings)
    guard, _ = create_app(served, keys)
    start_logs()
    server = _Server(guard, served)
    log_event("listening", host=settings.host, port=listener.getsockname()[1], model=name)
    available = available_bytes()
    if available is not None and settings.memory_budget_bytes > available:
        # What is not there is refused when it is asked for.
        log_event("budget above memory", budget_bytes=settings.memory_budget_bytes, available_bytes=available)
    server.run(sockets=[listener])
    log_event("ended")


def build(model: LanguageModel, name: str, settings: Settings) -> Served:
    """The service and its store, within the memory budget.

    Raises:
        GriffinError: the budget is too small, or the state directory cannot be used.
    """
    num_bytes = state_bytes(model.config, settings.capacity, model.window_dtype, model.precision)
    directory, budget_bytes = settings.state_directory, settings.memory_budget_bytes
    extra, most_bytes = model.engine.extra(settings.capacity), MOST_BYTES
    if directory is None:
        most_bytes = min(MOST_BYTES, budget_bytes // SHARE_OF_CONVERSATIONS)
        extra = extra._replace(num_bytes=extra.num_bytes + most_bytes)
    plan = plan_memory(budget_bytes, num_bytes, extra=extra)
    key = state_key(settings.state_key_file, directory)
    store = StateStore(
        model,
        directory,
        memory_bytes=plan.store_bytes,
        disk_bytes=None if directory is None else settings.disk_budget_bytes,
    )
    service = GenerationService(
        model,
        store,
        num_slots=plan.num_slots,
        num_places=plan.num_places,
        capacity=settings.capacity,
        max_waiting=settings.most_waiting,
    )
    return Served(
        name,
        model,
        settings,
        Worker(service, settings.most_per_key),
        store,
        _records(model, store, settings, key, most_bytes),
        Turns(model.tokenizer),
        key,
    )


def _records(model: LanguageModel, store: StateStore, settings: Settings, key: bytes, most_bytes: int) -> Records:
    directory, url = settings.state_directory, settings.state_url
    if url is None:
        return Records(directory, model.identity.fingerprint, most_bytes)
    from griffinlm.serve.shared_records import SharedRecords  # fsspec is slow to import

    return SharedRecords(directory, store, model, url, key, settings.largest_upload_bytes, most_bytes)


def free_port(host: str, port: int) -> int:
    """The port, or a free one for 0; ServeError where nobody can listen there."""
    with _listener(host, port) as listener:
        return listener.getsockname()[1]


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, UnicodeError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise ServeError(f"cannot listen on {host} port {port}: {reason}") from error
    return listener


class _Server(uvicorn.Server):
    """Ends in good order: at the first signal new work is refused, and the last answer ends the server."""

    def __init__(self, guard: Guard, served: Served) -> None:
        super().__init__(
            uvicorn.Config(
                guard,
                http=_Protocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=round(served.settings.idle_seconds),
                timeout_graceful_shutdown=LAST_SECONDS,
                h11_max_incomplete_event_size=LONGEST_HEAD_BYTES,
            )
        )
        self._guard, self._served = guard, served
        self._drain_end: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._guard.is_draining:
            self.should_exit = True
        self._guard.is_draining = True

    async def on_tick(self, counter: int) -> bool:
        if self._guard.is_draining and not self.should_exit:
            self.should_exit = await self._drained()
        return await super().on_tick(counter)

    async def _drained(self) -> bool:
        """Whether nobody waits any more; answers that take too long end with what they have."""
        now = asyncio.get_running_loop().time()
        if self._drain_end is None:
            log_event("draining", open=self._guard.num_open)
            self._drain_end = now + self._served.settings.drain_seconds
        is_late = now >= self._drain_end
        if is_late:
            self._served.worker.let_end()
        return self._guard.num_open == 0 or is_late


class _Transport:
    """A transport that, once closed, is gone in a while, even if the client does not take what was written before."""

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._timer: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        self._transport.close()
        if self._timer is None:
            self._timer = self._loop.call_later(WRITE_SECONDS, self._transport.abort)

    def forget(self) -> None:
        """The connection is lost."""
        if self._timer is not None:
            self._timer.cancel()


class _Protocol(H11Protocol):
    """Also closes connections on which no whole request head comes within the time for idle ones."""

    _head_timer: asyncio.TimerHandle | None = None
    _closing: Any
    """The transport as the protocol knows it."""

    def connection_made(self, transport: Any) -> None:
        self._closing = _Transport(transport, self.loop)
        super().connection_made(self._closing)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._closing.forget()
        if self._head_timer is not None:
            self._head_timer.cancel()

    def _watch_head(self) -> None:
        is_waiting = str(self.conn.their_state) == "IDLE"
        if is_waiting and self._head_timer is None:
            self._head_timer = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        elif not is_waiting and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
