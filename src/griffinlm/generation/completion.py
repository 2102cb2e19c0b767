"""From tokens to the answer a person reads: streamed text, stop strings, the result."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from griffinlm.generation.request import FinishReason
from griffinlm.generation.sampling import Sampler, TokenLogProbability
from griffinlm.state import State
from griffinlm.text import StopStrings, TextStream


@dataclass(frozen=True)
class Generation:
    """One answer."""

    text: str
    """Up to a stop string, without control tokens."""
    token_ids: list[int]
    """Every sampled token; the last one is pending in `state`, not yet read by the model."""
    finish_reason: FinishReason
    """"stop": an end token or a stop string; "length": `max_tokens` reached."""
    state: State
    log_probabilities: list[TokenLogProbability] | None = None


@dataclass
class Completion:
    """Collects one answer token by token."""

    stream: TextStream | None
    """None where the model has no tokenizer; the text is then empty."""
    stops: StopStrings
    sampler: Sampler
    pieces: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    log_probabilities: list[TokenLogProbability] = field(default_factory=list)

    def push(self, token: int, is_last: bool) -> tuple[str, bool]:
        """The text that this token sets free, and whether a stop string ended the answer here."""
        self.token_ids.append(token)
        if self.sampler.latest is not None:
            self.log_probabilities.append(self.sampler.latest)
        piece, stopped = "", False
        if self.stream is not None:
            piece, stopped = self.stops.push(self.stream.push(token))
            if is_last and not stopped:
                rest, stopped = self.stops.push(self.stream.finish())
                piece += rest if stopped else rest + self.stops.finish()
        self.pieces.append(piece)
        return piece, stopped

    def result(self, finish_reason: FinishReason, state: State) -> Generation:
        logs = self.log_probabilities if self.sampler.latest is not None else None
        return Generation("".join(self.pieces), self.token_ids, finish_reason, state, logs)


def with_last_pending(arrays: Mapping[str, Any], token: int) -> dict[str, Any]:
    """The arrays of a state of one row whose last sampled token has not been read."""
    pending = arrays["pending"].copy()
    pending[0] = token
    return {**arrays, "pending": pending}
