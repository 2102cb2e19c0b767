"""From logits to a token: penalties, temperature, the cuts top-k, top-p and min-p, and a draw that needs no memory."""

import math
import secrets
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

import numpy as np

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


@dataclass(frozen=True)
class TokenLogProbability:
    """log p of the chosen token under the model itself, before penalties and temperature."""

    token: int
    log_probability: float
    alternatives: tuple[tuple[int, float], ...]
    """The best tokens and their log-probabilities, best first."""


def _is_finite(value: Any) -> bool:
    """Also of whole numbers that no float can hold."""
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


class Sampler:
    """Chooses the tokens of one answer.

    The uniform number behind a token is a function of seed and place in the document alone, so that a conversation
    saved and taken up again goes on as if it had never stopped. Penalties count the tokens of this call.

    Args:
        prompt: what is read before the first token.
        first_position: place in the document of the first token to choose.
        end_ids: tokens held back until `min_tokens` have been chosen.
        num_choices: ids from here on are never chosen: a vocabulary may be larger than its tokenizer.
        num_alternatives: how many of the best tokens' log-probabilities to keep; None keeps none at all.
    """

    def __init__(
        self,
        parameters: SamplingParameters,
        prompt: Iterable[int] = (),
        first_position: int = 0,
        end_ids: Iterable[int] = (),
        min_tokens: int = 0,
        num_choices: int | None = None,
        num_alternatives: int | None = None,
    ) -> None:
        self.parameters = parameters
        self._seed = secrets.randbelow(SEEDS) if parameters.seed is None else int(parameters.seed)
        self._position = first_position
        self._penalised = parameters.repetition_penalty != 1.0
        self._num_choices = num_choices
        self._seen = {t for t in prompt if num_choices is None or t < num_choices} if self._penalised else set()
        self._counts: Counter[int] = Counter()
        self._counted = parameters.presence_penalty != 0.0 or parameters.frequency_penalty != 0.0
        self._end_ids = list(end_ids)
        self._num_held_back = min_tokens
        self._num_alternatives = num_alternatives
        self.latest: TokenLogProbability | None = None
        """The log-probability of the token chosen last, where alternatives were asked for."""

    def choose(self, logits: np.ndarray) -> int:
        """The next token from float32 logits [vocab], which stay as they are."""
        adjusted = self._penalise(logits[: self._num_choices])
        if self.parameters.temperature == 0:
            token = int(adjusted.argmax())
        else:
            token = draw(probabilities(adjusted, self.parameters), uniform(self._seed, self._position))
        if self._num_alternatives is not None:
            self.latest = _log_probability(logits, token, self._num_alternatives)
        self._position += 1
        self._num_held_back -= 1
        if self._penalised:
            self._seen.add(token)
        if self._counted:
            self._counts[token] += 1
        return token

    def _penalise(self, logits: np.ndarray) -> np.ndarray:
        held_back = self._num_held_back > 0 and self._end_ids
        if not (self._seen or self._counts or held_back):
            return logits
        adjusted = logits.copy()
        if self._seen:
            tokens = np.fromiter(self._seen, np.int64)
            values, penalty = adjusted[tokens], np.float32(self.parameters.repetition_penalty)
            adjusted[tokens] = np.where(values > 0, values / penalty, values * penalty)
        if self._counts:
            tokens = np.fromiter(self._counts, np.int64)
            times = np.fromiter(self._counts.values(), np.float32)
            adjusted[tokens] -= self.parameters.presence_penalty + self.parameters.frequency_penalty * times
        if held_back:
            adjusted[self._end_ids] = -np.inf
        return adjusted


def probabilities(logits: np.ndarray, parameters: SamplingParameters) -> np.ndarray:
    """The distribution a token is drawn from: float64 [vocab], sums to 1. Temperature must be above 0."""
    scaled = logits.astype(np.float64)
    scaled -= scaled.max()
    scaled /= parameters.temperature
    if parameters.top_k is not None and parameters.top_k < len(scaled):
        scaled[scaled < np.partition(scaled, -parameters.top_k)[-parameters.top_k]] = -np.inf
    weights = np.exp(scaled)
    weights /= weights.sum()
    if parameters.top_p is not None and parameters.top_p < 1.0:
        order = np.argsort(-weights, kind="stable")
        reached = np.cumsum(weights[order])
        num_kept = int(np.searchsorted(reached, parameters.top_p)) + 1
        weights[order[num_kept:]] = 0.0
    if parameters.min_p is not None:
        weights[weights < parameters.min_p * weights.max()] = 0.0
    return weights / weights.sum()


def draw(weights: np.ndarray, number: float) -> int:
    """The first token at which the running sum of probabilities, in order of ids, passes `number` in [0, 1)."""
    reached = np.cumsum(weights)
    token = int(np.searchsorted(reached, number * reached[-1], side="right"))
    return min(token, int(np.flatnonzero(weights)[-1]))


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on its arguments alone (Philox, the position as counter)."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """log p over the last axis, in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _log_probability(logits: np.ndarray, token: int, num_alternatives: int) -> TokenLogProbability:
    values = log_softmax(logits)
    best = np.argsort(-values, kind="stable")[:num_alternatives]
    return TokenLogProbability(token, float(values[token]), tuple((int(t), float(values[t])) for t in best))
