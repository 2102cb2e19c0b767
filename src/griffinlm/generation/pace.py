"""How much of a prompt to read between two tokens of the others, by what both have cost lately."""

import statistics
from collections import deque

WHOLE_CHUNK_TOKENS = 512
"""Read at once where nobody is kept waiting: enough for the matrix products, and little memory."""

LEAST_CHUNK_TOKENS = 4
"""Read whatever it costs, so that every prompt is read to its end."""

CHUNK_COST_STEPS = 1.1
"""What a chunk may cost, in steps of the rows that write. Above 1, so that chunks still grow where a few tokens more
cost next to nothing; low enough that a step and a chunk together stay well under three steps."""

NUM_STEPS_REMEMBERED = 3


class Pace:
    """Steers the length of a chunk towards a cost of `CHUNK_COST_STEPS`, by at most a factor of two at a time."""

    def __init__(self) -> None:
        self._step_seconds: deque[float] = deque(maxlen=NUM_STEPS_REMEMBERED)
        self._chunk_tokens = float(LEAST_CHUNK_TOKENS)

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a prompt to read before the next step."""
        return int(self._chunk_tokens)

    @property
    def step_seconds(self) -> float | None:
        """The median of the last steps, so that one hiccup counts for nothing; None before the first."""
        return statistics.median(self._step_seconds) if self._step_seconds else None

    def round_seconds(self, is_reading: bool) -> float | None:
        """What a step costs together with the chunk before it, where there is one."""
        step_seconds = self.step_seconds
        if step_seconds is None:
            return None
        return step_seconds * (1 + CHUNK_COST_STEPS) if is_reading else step_seconds

    def stepped(self, seconds: float) -> None:
        """The rows that write have read one token each."""
        self._step_seconds.append(seconds)

    def read_chunk(self, seconds: float) -> None:
        """A chunk of `chunk_tokens`, not cut short, has been read."""
        allowed = CHUNK_COST_STEPS * (self.step_seconds or 0.0)
        factor = min(max(allowed / seconds, 0.5), 2.0) if seconds > 0 else 2.0
        self._chunk_tokens = min(max(self._chunk_tokens * factor, LEAST_CHUNK_TOKENS), WHOLE_CHUNK_TOKENS)
