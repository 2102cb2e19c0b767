"""A request as the scheduler sees it: token ids in, token ids out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from griffinlm.errors import GriffinError

FinishReason = Literal["stop", "length", "deadline", "error"]


class RequestError(GriffinError):
    """A request that cannot be run as it is."""


class TokenChooser(Protocol):
    """Turns a row of logits into a token; remembers whatever its rule needs."""

    def choose(self, logits: Any) -> int: ...


@dataclass(frozen=True)
class Remainder:
    """What a request leaves behind when it ends, at whatever point: enough to go on exactly there."""

    state: Mapping[str, Any] | None
    """Arrays of the state reached, nothing pending; None where nothing was read and no state was given."""
    unread: list[int]
    """What the model has not read: the rest of the prompt, or the last token written."""
    num_written: int
    """Tokens written so far."""


@dataclass(frozen=True, eq=False)
class Request:
    """A conversation to go on with until it ends."""

    prompt: list[int]
    """Tokens to read first; at least one."""
    chooser: TokenChooser
    max_tokens: int
    end_ids: frozenset[int]
    """Tokens that end the answer; the one that did is its last token."""
    state: Mapping[str, Any] | None = None
    """Arrays of the state to begin from; None is an empty one."""
    priority: int = 0
    """Higher goes first; whoever waits rises with time."""
    timeout_seconds: float | None = None
    """Time from being submitted until the request ends with what it has; None is no limit."""

    def resumed(self, remainder: Remainder) -> "Request":
        """The request that goes on where this one left off, with the same chooser; its time limit starts anew."""
        return replace(
            self,
            prompt=remainder.unread,
            state=remainder.state,
            max_tokens=self.max_tokens - remainder.num_written,
        )


@dataclass(frozen=True)
class TokenEvent:
    """One token of one request, and with the last one why it ended and what it leaves.

    A request that ends by its deadline or an error ends without another token.
    """

    request: Request
    token: int | None
    finish_reason: FinishReason | None = None
    remainder: Remainder | None = None
    """Of every request that has ended, but for an error."""
    error: Exception | None = None
    """What this request alone did wrong, with finish reason "error"."""
