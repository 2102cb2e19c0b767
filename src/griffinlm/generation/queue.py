"""Who is next, among those that wait for a slot and among prompts that are being read."""

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from griffinlm.errors import GriffinError
from griffinlm.generation.request import Request, RequestError, Start

AGEING_SECONDS = 10.0
"""Waiting as long as this counts as much as one step of priority, so that nobody waits for ever."""


def _is_same_prompt(one: list[int], other: list[int]) -> bool:
    return one is other or one == other  # A list is compared with itself token by token.


SHARED = {
    "prompt": _is_same_prompt,
    "state": operator.is_,
    "find_start": operator.is_,
    "adapter": operator.eq,
    "priority": operator.eq,
}
"""What the requests of a group have in common, and how it is compared."""


class QueueFullError(GriffinError):
    """There is no room for another request; `seconds` is when a slot is expected to be free, None where unknown."""

    def __init__(self, message: str, seconds: float | None) -> None:
        super().__init__(message, hint="send the request again then")
        self.seconds = seconds


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt that has been read: the arrays of the state after it, and the logits of its last token."""

    arrays: dict[str, Any]
    logits: Any


class Turn(NamedTuple):
    """When somebody came, or was last served."""

    seconds: float
    order: int
    """Of all turns, where the clock has not moved between them."""


@dataclass(eq=False)
class Group:
    """Requests that share one prompt and state, as far as they have not begun to write."""

    requests: list[Request]
    arrival: Turn
    slot: int = -1
    """Where the prompt is being read."""
    has_begun: bool = False
    """Whether the slot holds the state from which the prompt is read."""
    num_read: int = 0
    """Tokens of the prompt that the model has read."""
    logits: Any = None
    """Of the prompt's last token, once it is read."""
    read_prompt: ReadPrompt | None = None
    """Where an answer has already begun and others wait for slots of their own."""

    def __post_init__(self) -> None:
        self.turn = self.arrival
        """The arrival while it waits, then the last chunk that was read."""
        self.first = self.requests[0]
        self.priority = self.first.priority
        self.prompt, self.state = self.first.prompt, self.first.state
        self.keep_at: list[int] = []
        """Places in the prompt at which the state is still to be handed over."""

    def find_start(self) -> Start | None:
        """Where to begin; None while that is not known."""
        return Start(self.prompt, self.state) if self.first.find_start is None else self.first.find_start()

    def begin(self, start: Start) -> None:
        """The slot holds the state of `start`, which need not be kept here any longer."""
        self.prompt, self.num_read, self.keep_at = start.prompt, start.num_read, list(start.keep_at)
        self.state, self.has_begun = None, True

    @property
    def is_due(self) -> bool:
        """Whether the state must be handed over before the slot is used again."""
        return bool(self.keep_at) and self.keep_at[0] == self.num_read

    @property
    def is_read(self) -> bool:
        return self.num_read == len(self.prompt)

    @property
    def can_read(self) -> bool:
        return self.has_begun and not self.is_due and not self.is_read

    def chunk_end(self, num_tokens: int) -> int:
        """Where a chunk of at most that many tokens ends."""
        if self.first.scorer is not None:
            num_tokens = min(num_tokens, self.first.scorer.max_chunk_tokens)
        return min(self.num_read + num_tokens, len(self.prompt), *self.keep_at[:1])


def check_group(requests: Sequence[Request]) -> None:
    """Refuses what cannot be a group.

    Raises:
        RequestError: there is no request, one stands there twice or cannot be run, or they differ in what they share.
    """
    if not requests:
        raise RequestError("there are no requests to submit; there must be at least one")
    if len(set(requests)) < len(requests):
        raise RequestError("a request is submitted twice; it must end before it may be submitted again")
    first = requests[0]
    for request in requests:
        if not request.prompt and request.find_start is None:
            raise RequestError("a request's prompt has no tokens; it needs at least one")
        if request.max_tokens < 0:
            raise RequestError(f"a request's max_tokens is {request.max_tokens}; it must be 0 or above")
        differing = [
            name for name, is_same in SHARED.items() if not is_same(getattr(request, name), getattr(first, name))
        ]
        if differing:
            must = f"they must have the same {', '.join(SHARED)}"
            raise RequestError(f"requests of a group differ in {', '.join(differing)}; {must}")


def check_room(
    num_requests: int, num_ahead: int, max_waiting: int, num_slots: int, seconds: Callable[[], float | None]
) -> None:
    """Refuses what would not find a place in the queue.

    Args:
        num_ahead: requests that wait beyond the free slots; below 0 where some slots stay free.
        seconds: gives the time until a slot is free, where known.

    Raises:
        RequestError: so many never find one.
        QueueFullError: there is no room now.
    """
    most = max_waiting + num_slots
    if num_requests > most:
        raise RequestError(f"{num_requests} answers are asked for at once; at most {most} can be taken")
    if num_ahead + num_requests > max_waiting:
        expected = seconds()
        when = "it is not yet known when a slot will be free"
        if expected is not None:
            when = f"a slot is expected to be free in {expected:.1f} s"
        places = f"{max(num_ahead, 0)} of {max_waiting} places in the queue are taken"
        raise QueueFullError(f"{places}, {num_requests} more asked for; {when}", expected)


def most_urgent(groups: Iterable[Group], now: float) -> Group | None:
    """The one of highest priority, a step higher for every `AGEING_SECONDS`; of equals the longest without a turn."""

    def rank(group: Group) -> tuple[int, int]:
        return -group.priority - int((now - group.turn.seconds) / AGEING_SECONDS), group.turn.order

    return min(groups, key=rank, default=None)
