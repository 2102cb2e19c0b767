"""The parameters of sampling, checked."""

import math
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from griffinlm.errors import GriffinError

SEEDS = 2**63


class SamplingError(GriffinError):
    """A sampling parameter out of its range."""


@dataclass(frozen=True)
class SamplingParameters:
    """How the next token is chosen. The steps are taken in the order of the fields."""

    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of every token of prompt and answer; 1 is off."""
    presence_penalty: float = 0.0
    """Taken off the logit of every token of the answer."""
    frequency_penalty: float = 0.0
    """Taken off the logit of a token of the answer for every time it stands there."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the best token, the lowest id among equals."""
    top_k: int | None = None
    """Keeps the k best tokens, and those equal to the last of them."""
    top_p: float | None = None
    """Keeps the fewest best tokens that reach this probability together."""
    min_p: float | None = None
    """Keeps the tokens with at least this share of the best one's probability."""
    seed: int | None = None
    """Same seed, state and prompt: same tokens, also where the state was saved in between. None draws one."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.name in ("top_k", "seed")
            if value is None and field.name in ("top_k", "top_p", "min_p", "seed"):
                continue
            if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
                raise SamplingError(f"{field.name} is {value!r}; it must be a {'whole ' if whole else ''}number")
            if not whole and not _is_finite(value):
                raise SamplingError(f"{field.name} is {value}; it must be finite")
        self._require("repetition_penalty", 0.01 <= self.repetition_penalty <= 100, "between 0.01 and 100")
        for name in ("presence_penalty", "frequency_penalty"):
            self._require(name, abs(getattr(self, name)) <= 100, "between -100 and 100")
        self._require("temperature", self.temperature >= 0, "0 or above")
        self._require("top_k", self.top_k is None or self.top_k >= 1, "1 or above")
        self._require("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1")
        self._require("min_p", self.min_p is None or 0 <= self.min_p <= 1, "between 0 and 1")
        self._require("seed", self.seed is None or 0 <= self.seed < SEEDS, f"between 0 and {SEEDS - 1}")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise SamplingError(f"{name} is {getattr(self, name)}; it must be {allowed}")


def _is_finite(value: Any) -> bool:
    """Also of whole numbers that no float can hold."""
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False
