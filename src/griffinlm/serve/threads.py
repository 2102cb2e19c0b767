"""Threads beside the event loop, shared by the tenants."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from weakref import WeakValueDictionary

R = TypeVar("R")


class Threads:
    """Runs functions off the event loop, one at a time for each tenant, so that nobody takes all threads."""

    def __init__(self, num_threads: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(num_threads, name)
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """Of the tenants that have something to be done."""

    async def run(self, tenant: str, function: Callable[..., R], *arguments: Any) -> R:
        """What a function gives."""
        loop = asyncio.get_running_loop()
        turn = self._turns.setdefault(tenant, asyncio.Semaphore(1))
        await turn.acquire()
        work = self._executor.submit(function, *arguments)
        # What has begun on a thread goes on there when nobody waits for it any more, and the turn is over behind it.
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(turn.release))
        return await asyncio.wrap_future(work)

    def shutdown(self) -> None:
        """Waits for what has begun."""
        self._executor.shutdown()
