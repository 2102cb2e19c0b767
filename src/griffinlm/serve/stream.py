"""Server-sent events, and work that ends when its client has gone."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse

from griffinlm.generation.job import Event
from griffinlm.serve.errors import as_api_error, to_json
from griffinlm.serve.guard import ClientGoneError
from griffinlm.serve.logs import log_fault
from griffinlm.serve.worker import Answers

SILENT_SECONDS = 15.0
"""After so long without a word a comment is sent, so that nobody between takes the connection for dead."""
DONE = b"data: [DONE]\n\n"

R = TypeVar("R")


class Leavable(Protocol):
    """Work that can be told that nobody waits for it."""

    def leave(self) -> None: ...


def event(data: Any, name: str | None = None) -> bytes:
    """One event; its name, if any, on a line of its own."""
    return (b"" if name is None else f"event: {name}\n".encode()) + b"data: " + to_json(data) + b"\n\n"


class EventStream(StreamingResponse):
    """A stream of events. The answers behind it end with it, however it ends."""

    def __init__(self, chunks: AsyncIterator[bytes], *answers: Leavable) -> None:
        super().__init__(_kept_alive(_with_faults(chunks)), media_type="text/event-stream")
        self.headers["cache-control"] = "no-store"
        self.headers["x-accel-buffering"] = "no"
        self._answers = answers

    async def __call__(self, *arguments: Any) -> None:
        try:
            await super().__call__(*arguments)
        finally:
            for answers in self._answers:
                answers.leave()


async def merged(all_answers: Sequence[Answers]) -> AsyncIterator[tuple[int, Event]]:
    """The events of several jobs as they come, each with its job's place."""
    iterators = [aiter(answers) for answers in all_answers]
    following = {asyncio.ensure_future(anext(iterator)): place for place, iterator in enumerate(iterators)}
    try:
        while following:
            done, _ = await asyncio.wait(following, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                place = following.pop(task)
                try:
                    yield place, task.result()
                except StopAsyncIteration:
                    continue
                following[asyncio.ensure_future(anext(iterators[place]))] = place
    finally:
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)


async def while_connected(request: Request, work: Coroutine[Any, Any, R]) -> R:
    """What the work gives; it is cancelled where the client goes away first.

    Raises:
        ClientGoneError: nobody is left to be answered.
    """
    tasks = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise ClientGoneError
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _with_faults(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A fault in the middle is told as an event, the last one."""
    try:
        async for chunk in chunks:
            yield chunk
    except ClientGoneError:
        return
    except Exception as error:
        told = as_api_error(error)
        if told.status == 500:
            log_fault("a stream failed", error)
        yield event(told.body, "error")


async def _kept_alive(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    iterator = aiter(chunks)
    following = asyncio.ensure_future(anext(iterator))
    try:
        while True:
            done, _ = await asyncio.wait({following}, timeout=SILENT_SECONDS)
            if not done:
                yield b": still at work\n\n"
                continue
            try:
                yield following.result()
            except StopAsyncIteration:
                return
            following = asyncio.ensure_future(anext(iterator))
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
