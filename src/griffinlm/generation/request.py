"""A request as the scheduler sees it: token ids in, token ids out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length"]


class TokenChooser(Protocol):
    """Turns a row of logits into a token; remembers whatever its rule needs."""

    def choose(self, logits: Any) -> int: ...


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


@dataclass(frozen=True)
class TokenEvent:
    """One token of one request, and at the last one why it ended and what the model then remembers."""

    request: Request
    token: int
    finish_reason: FinishReason | None = None
    state: dict[str, Any] | None = None
    """Arrays without the last token, which the model has not read."""
