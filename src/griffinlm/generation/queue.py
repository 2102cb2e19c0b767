"""Who is next, among those that wait for a slot and among prompts that are being read."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from griffinlm.errors import GriffinError
from griffinlm.generation.request import Request

AGEING_SECONDS = 10.0
"""Waiting as long as this counts as much as one step of priority, so that nobody waits for ever."""


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
    num_read: int = 0
    """Tokens of the prompt that the model has read."""
    read_prompt: ReadPrompt | None = None
    """Where an answer has already begun and others wait for slots of their own."""

    def __post_init__(self) -> None:
        self.turn = self.arrival
        """The arrival while it waits, then the last chunk that was read."""
        self.prompt = self.requests[0].prompt
        self.state = self.requests[0].state
        self.priority = self.requests[0].priority


def most_urgent(groups: Iterable[Group], now: float) -> Group | None:
    """The one of highest priority, a step higher for every `AGEING_SECONDS`; of equals the longest without a turn."""

    def rank(group: Group) -> tuple[int, int]:
        return -group.priority - int((now - group.turn.seconds) / AGEING_SECONDS), group.turn.order

    return min(groups, key=rank, default=None)
