"""What a program is asked to measure, and the form in which it answers; standard library only."""

import json
import resource
import statistics
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """What to measure of one program."""

    threads: int
    positions: tuple[int, ...]
    """Tokens in memory before the first one that is timed."""
    decode_tokens: int
    """Tokens timed at each position; one more is computed before them."""
    prefill_tokens: int
    prefill_repeats: int
    batch_rows: int
    """Rows decoded together; 0 leaves this out."""

    @classmethod
    def parse(cls, text: str) -> "Settings":
        return cls(**json.loads(text))


def peak_resident_bytes() -> int:
    """The largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measured(
    measure: str, milliseconds: list[float], *, tokens: int, position: int = 0, rows: int = 1, **more: Any
) -> dict[str, Any]:
    """One figure: the median time of a call that computes `tokens` tokens in all, and what follows from it."""
    median = statistics.median(milliseconds)
    return {
        "measure": measure,
        "position": position,
        "rows": rows,
        "milliseconds": round(median, 3),
        "tokens_per_second": round(1e3 * tokens / median, 3),
        "peak_rss_bytes": peak_resident_bytes(),
        **more,
    }
