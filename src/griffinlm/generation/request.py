"""A request as the scheduler sees it: token ids in, token ids out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

from griffinlm.errors import GriffinError

FinishReason = Literal["stop", "length", "deadline", "error"]


class RequestError(GriffinError):
    """A request that cannot be run as it is."""


class Chooser(Protocol):
    """The rule of one answer; remembers whatever it needs. Tokens are chosen by the scheduler's `choose`."""

    @property
    def is_complete(self) -> bool:
        """Whether the answer ends with the token chosen last, whatever token that is."""
        ...


class TokenChooser(Chooser, Protocol):
    """One that chooses for itself."""

    def choose(self, logits: Any) -> int:
        """The next token, from a row of logits."""
        ...


Choose = Callable[[Sequence[Any], Any], Sequence[int | Exception]]
"""The next token of every chooser, from a row of logits each; where one cannot choose, what it raised."""

Step = Callable[[Any, Sequence[Any], Sequence[int], Sequence[int]], Sequence[int | Exception | None]]
"""Reads a token of each slot and chooses the next: (executor, choosers, slots, tokens) to what `Choose` gives.

None stands for a token that is still on its way; it is given again until it has arrived. What an executor raises it
raises before anything is done.
"""


def choose_each(choosers: Sequence[TokenChooser], logits: Sequence[Any]) -> list[int | Exception]:
    """A `Choose` that asks one after the other."""
    found: list[int | Exception] = []
    for chooser, row in zip(choosers, logits, strict=True):
        try:
            found.append(chooser.choose(row))
        except Exception as error:  # The chooser is the request's own; the other rows have theirs.
            found.append(error)
    return found


class PromptScorer(Protocol):
    """Looks at the logits of a prompt's tokens while it is read."""

    max_chunk_tokens: int
    """Tokens whose logits may be held at once."""

    def score(self, first: int, logits: Any) -> None:
        """Takes the logits [1, tokens, vocab] after the prompt's tokens from place `first` on."""
        ...


class Start(NamedTuple):
    """Where the reading of a prompt begins."""

    prompt: list[int]
    state: Mapping[str, Any] | None = None
    """Arrays of the state to begin from; None is an empty one."""
    num_read: int = 0
    """Tokens of the prompt that the state has read already."""
    keep_at: tuple[int, ...] = ()
    """Ascending numbers of the prompt's tokens after which the state is handed over, none below `num_read`."""


@dataclass(frozen=True)
class Remainder:
    """What a request leaves behind when it ends, at whatever point: enough to go on exactly there."""

    state: Mapping[str, Any] | None
    """Arrays of the state reached, nothing pending; None where there is none, or none was wanted."""
    unread: list[int]
    """What that state has not read: the rest of the prompt, or the last token written."""
    num_written: int
    """Tokens written so far."""


@dataclass(frozen=True, eq=False)
class Request:
    """A conversation to go on with until it ends."""

    prompt: list[int]
    """Tokens to read first; at least one."""
    chooser: Chooser
    max_tokens: int
    """0 reads the prompt and writes nothing."""
    end_ids: frozenset[int]
    """Tokens that end the answer; the one that did is its last token."""
    state: Mapping[str, Any] | None = None
    """Arrays of the state to begin from; None is an empty one."""
    priority: int = 0
    """Higher goes first; whoever waits rises with time."""
    timeout_seconds: float | None = None
    """Time from being submitted until the request ends with what it has; None is no limit."""
    adapter: str | None = None
    """The executor's adapter that reads and writes; None is the model itself."""
    find_start: Callable[[], Start | None] | None = None
    """Asked at every step once there is a slot, until it gives what takes the place of `prompt` and `state`."""
    scorer: PromptScorer | None = None
    wants_state: bool = True
    """Whether the state is of use when the request ends."""

    def resumed(self, remainder: Remainder) -> "Request":
        """The request that goes on where this one left off, with the same chooser; its time limit starts anew."""
        return replace(
            self,
            prompt=remainder.unread,
            state=remainder.state,
            max_tokens=self.max_tokens - remainder.num_written,
            find_start=None,
        )


@dataclass(frozen=True)
class TokenEvent:
    """One token of one request, and with its end why it ended and what it leaves.

    A request ends with its last token or, by its deadline, an error or for want of room for its state, after it.
    """

    request: Request
    token: int | None
    finish_reason: FinishReason | None = None
    remainder: Remainder | None = None
    """Of every request that has ended, but for an error."""
    error: Exception | None = None
    """What this request alone did wrong, with finish reason "error"."""


@dataclass(frozen=True)
class StateEvent:
    """A state handed over in the middle of a prompt."""

    request: Request
    """The first of those that share the prompt."""
    num_read: int
    """Tokens of the prompt that it has read."""
    state: Mapping[str, Any]


Event = TokenEvent | StateEvent
