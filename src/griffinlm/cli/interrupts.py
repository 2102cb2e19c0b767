"""Ctrl-C while a state is on its way to a file."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from griffinlm.state import State


class Interrupted(KeyboardInterrupt):
    """Ctrl-C between two steps of a model, with what it remembers there; None where that is nothing yet."""

    def __init__(self, state: "State | None") -> None:
        super().__init__()
        self.state = state


@contextmanager
def noted_interrupt() -> Iterator[Callable[[], bool]]:
    """In this block Ctrl-C is noted, and a second one raises KeyboardInterrupt; gives whether one came."""
    num_heard = 0

    def on_interrupt(_: int, __: FrameType | None) -> None:
        nonlocal num_heard
        num_heard += 1
        if num_heard > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: num_heard > 0
    finally:
        signal.signal(signal.SIGINT, before)
