"""From logits to the answer a person reads: chosen tokens, streamed text, stop strings, the result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from griffinlm.executor import DrawingExecutor
from griffinlm.generation.exits import ExitingExecutor, exiting_step
from griffinlm.generation.request import FinishReason
from griffinlm.generation.sampling import Sampler, TokenLogProbability, choose_together
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


class Completion:
    """One answer while it is written, complete where a stop string is. `write_together` chooses its tokens.

    Args:
        stream: None where the model has no tokenizer; the text is then empty.
    """

    def __init__(self, sampler: Sampler, stream: TextStream | None, stops: Sequence[str]) -> None:
        self._sampler, self._stream, self._stops = sampler, stream, StopStrings(stops)
        self._is_stopped = False
        self._pieces: list[str] = []
        self._num_taken = 0
        """Pieces that were given out."""
        self.token_ids: list[int] = []
        self.log_probabilities: list[TokenLogProbability] = []

    @property
    def has_text(self) -> bool:
        """Whether the model has a tokenizer."""
        return self._stream is not None

    @property
    def text(self) -> str:
        """All that is set free so far."""
        return "".join(self._pieces)

    @property
    def is_complete(self) -> bool:
        return self._is_stopped or self._sampler.is_complete

    def replay(self, token_ids: Sequence[int], log_probabilities: Sequence[TokenLogProbability] = ()) -> None:
        """Takes over tokens chosen elsewhere, whose text was given out there; what follows goes on exactly."""
        self._sampler.replay(token_ids)
        for token in token_ids:
            self._push(token)
        self.log_probabilities += log_probabilities
        self._num_taken = len(self._pieces)

    def take_piece(self) -> str:
        """The text set free since it was last taken."""
        taken, self._num_taken = self._num_taken, len(self._pieces)
        return "".join(self._pieces[taken:])

    def finish(self, reason: FinishReason) -> FinishReason:
        """No token follows: sets free what was held back, and says why the answer ended with that."""
        if self._stream is not None and not self._is_stopped:
            self._free(self._stream.finish())
            if not self._is_stopped:
                self._pieces.append(self._stops.finish())
        return "stop" if self._is_stopped else reason

    def result(self, finish_reason: FinishReason, state: State) -> Generation:
        logs = self.log_probabilities if self._sampler.latest is not None else None
        return Generation(self.text, self.token_ids, finish_reason, state, logs)

    def _take(self, token: int) -> None:
        """The sampler has chosen a token."""
        if self._sampler.latest is not None:
            self.log_probabilities.append(self._sampler.latest)
        self._push(token)

    def _take_drawn(self, token: int) -> None:
        """An executor has drawn a token."""
        self._sampler.take_drawn(token)
        self._push(token)

    def _push(self, token: int) -> None:
        self.token_ids.append(token)
        if self._stream is not None:
            self._free(self._stream.push(token))

    def _free(self, text: str) -> None:
        piece, self._is_stopped = self._stops.push(text)
        self._pieces.append(piece)


def write_together(completions: Sequence[Completion], logits: np.ndarray) -> list[int | Exception]:
    """The next token of every answer from its row of float32 logits [rows, vocab]; its text is then there to be taken.

    What is chosen for an answer does not depend on the others. Where none can be, the error stands in its place.

    Args:
        completions: of one tokenizer.
    """
    found = choose_together([completion._sampler for completion in completions], logits)
    for completion, token in zip(completions, found, strict=True):
        if not isinstance(token, Exception):
            completion._take(token)
    return found


def step_and_write(
    executor: Any, completions: Sequence[Completion], slots: Sequence[int], tokens: Sequence[int]
) -> Sequence[int | Exception | None]:
    """A `Step`: that of any executor with `write_together` behind it, in one where it draws tokens or lets them leave.

    Raises:
        GriffinError: as for the executor's `step`; nothing was done.
    """
    if isinstance(executor, ExitingExecutor):
        return _step_to_exits(executor, completions, slots, tokens)
    if not isinstance(executor, DrawingExecutor):
        return write_together(completions, executor.step(slots, tokens))
    draws = [draw for one in completions if (draw := one._sampler.next_draw()) is not None]
    if len(draws) < len(completions):
        # Some answers have to see their logits.
        return write_together(completions, executor.step(slots, tokens))
    found: list[int | Exception] = []
    drawn = executor.step_and_draw(slots, tokens, draws, completions[0]._sampler.num_choices)
    for completion, token in zip(completions, drawn.tolist(), strict=True):
        try:
            completion._take_drawn(token)
            found.append(token)
        except Exception as error:  # Whatever goes wrong with one costs no other its token.
            found.append(error)
    return found


_step_to_exits = exiting_step(write_together)


def with_last_pending(arrays: Mapping[str, Any], token: int) -> dict[str, Any]:
    """The arrays of a state of one row whose last token has not been read."""
    pending = arrays["pending"].copy()
    pending[0] = token
    return {**arrays, "pending": pending}
