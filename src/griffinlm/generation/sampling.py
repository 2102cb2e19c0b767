"""From logits to a token: penalties, temperature, the cuts top-k, top-p and min-p, and a draw that needs no memory."""

import math
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

import numpy as np

from griffinlm.errors import GriffinError
from griffinlm.generation.grammar import Matcher

SEEDS = 2**63

TEMPERATURES = (1e-20, 1e20)
"""Past these float32 overflows, and the draw is long one among the best tokens or one among all."""

TOTAL_TOLERANCE = 1e-5
"""Relative, of a sum of float32 weights: several times what rounding of logits, exponentials and sum can do."""

BLOCK_TOKENS = 256
FEW_TOKENS = 1024


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
        logit_bias: added to the logits of single tokens before anything else.
        matcher: where the answer stands in a grammar; only what goes on there is chosen, and where nothing but an end
            token could, the answer is complete, whatever `min_tokens`.
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
        matcher: Matcher | None = None,
        logit_bias: Mapping[int, float] | None = None,
    ) -> None:
        self.parameters = parameters
        self.seed = secrets.randbelow(SEEDS) if parameters.seed is None else int(parameters.seed)
        """That of the parameters, or the one drawn where they have none."""
        self._position = first_position
        self._penalised = parameters.repetition_penalty != 1.0
        self._num_choices = num_choices
        seen = {t for t in prompt if num_choices is None or t < num_choices} if self._penalised else set()
        self._seen = np.fromiter(seen, np.int64)
        self._counts: Counter[int] = Counter()
        self._counted = parameters.presence_penalty != 0.0 or parameters.frequency_penalty != 0.0
        self._taken_off: np.ndarray | None = None
        self._end_ids = list(end_ids)
        self._num_held_back = min_tokens
        self._num_alternatives = num_alternatives
        self._matcher = matcher
        biased = {t: bias for t, bias in (logit_bias or {}).items() if num_choices is None or t < num_choices}
        self._biased = np.fromiter(biased, np.int64)
        self._bias = np.fromiter(biased.values(), np.float32)
        self.latest: TokenLogProbability | None = None
        """The log-probability of the token chosen last, where alternatives were asked for."""

    @property
    def is_complete(self) -> bool:
        """Whether the answer ends with the token chosen last: its grammar allows nothing but an end token.

        Raises:
            GrammarError: no token goes on here, or finding them takes too much work.
        """
        return self._matcher is not None and self._matcher.is_complete

    def choose(self, logits: np.ndarray) -> int:
        """The next token from float32 logits [vocab], which stay as they are.

        Raises:
            SamplingError: a logit is not a number, or no token may be chosen.
            GrammarError: as for `is_complete`.
        """
        adjusted = self._penalise(self._allowed(logits[: self._num_choices]))
        token = int(adjusted.argmax())
        if not math.isfinite(adjusted[token]):
            raise SamplingError(f"the best logit, of token {token}, is {adjusted[token]}; it must be finite")
        if self.parameters.temperature > 0:
            ids, weights = candidates(adjusted, self.parameters)
            token = int(ids[draw(weights, uniform(self.seed, self._position))])
        if self._num_alternatives is not None:
            self.latest = token_log_probability(logits, token, self._num_alternatives)
        self._remember(token)
        return token

    def replay(self, token_ids: Iterable[int]) -> None:
        """Takes over tokens that a sampler made like this one chose before: what follows goes on exactly as there.

        Without a seed the parameters must hold the one that was drawn there, `seed`.

        Raises:
            GrammarError: the tokens do not follow the grammar.
        """
        for token in token_ids:
            self._remember(token)

    def _remember(self, token: int) -> None:
        """All that the next choice depends on but its logits."""
        self._position += 1
        self._num_held_back -= 1
        if self._penalised and token not in self._seen:
            self._seen = np.append(self._seen, token)
        if self._counted:
            self._counts[token] += 1
            if self._taken_off is not None:
                self._taken_off[token] = self._penalty(token)
        if self._matcher is not None:
            self._matcher.accept(token)

    def _allowed(self, logits: np.ndarray) -> np.ndarray:
        """The logits, -inf where the grammar does not go on."""
        if self._matcher is None:
            return logits
        return np.where(self._matcher.allowed()[: len(logits)], logits, np.float32(-np.inf))

    def _penalise(self, logits: np.ndarray) -> np.ndarray:
        held_back = self._num_held_back > 0 and self._end_ids
        if not (self._seen.size or self._counts or held_back or self._biased.size):
            return logits
        adjusted = logits.copy()
        adjusted[self._biased] += self._bias
        if self._seen.size:
            values, penalty = adjusted[self._seen], np.float32(self.parameters.repetition_penalty)
            adjusted[self._seen] = np.where(values > 0, values / penalty, values * penalty)
        if self._counts:
            adjusted -= self._penalties(len(logits))
        if held_back:
            adjusted[self._end_ids] = -np.inf
        return adjusted

    def _penalties(self, num_choices: int) -> np.ndarray:
        """What the counts take off every logit."""
        if self._taken_off is None:
            self._taken_off = np.zeros(num_choices, np.float32)
            for token in self._counts:
                self._taken_off[token] = self._penalty(token)
        return self._taken_off

    def _penalty(self, token: int) -> float:
        return self.parameters.presence_penalty + self.parameters.frequency_penalty * self._counts[token]


def candidates(logits: np.ndarray, parameters: SamplingParameters) -> tuple[Sequence[int] | np.ndarray, np.ndarray]:
    """The tokens that may be drawn from float32 logits [vocab]: their ids, ascending, and float32 weights.

    The best token weighs 1; weights over their sum are probabilities. Temperature must be above 0.
    """
    least, most = TEMPERATURES
    temperature = min(max(parameters.temperature, least), most)
    ids: Sequence[int] | np.ndarray = range(len(logits))
    for cut in _cuts(parameters, temperature):
        kept = cut(logits)
        ids = kept if isinstance(ids, range) else ids[kept]
        logits = logits[kept]
    return ids, _weights(logits, logits.max(), temperature)


def draw(weights: np.ndarray, number: float) -> int:
    """The first index at which the running sum of float32 weights passes the share `number`, in [0, 1), of it all.

    Sums are float32 inside blocks and float64 across them, so the index is exact but for numbers that lie within
    `TOTAL_TOLERANCE` of a step. What weighs nothing is never drawn.
    """
    reached = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), BLOCK_TOKENS)), dtype=np.float64)
    share = number * reached[-1]
    block = _first_above(reached, share)
    start = block * BLOCK_TOKENS
    inside = np.cumsum(weights[start : start + BLOCK_TOKENS], dtype=np.float64)
    return start + _first_above(inside, share - (reached[block - 1] if block else 0.0))


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on its arguments alone (Philox, the position as counter)."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """log p over the last axis of float32 logits, in float64, to 1e-6."""
    return logits.astype(np.float64) - log_normaliser(logits)[..., None]


def log_normaliser(logits: np.ndarray) -> np.ndarray:
    """The logarithm of the sum of exponentials over the last axis of float32 logits, in float64, to 1e-6.

    A logit less this is the log-probability of its token.
    """
    best = logits.max(axis=-1, keepdims=True)
    return best[..., 0] + np.log(_weights(logits, best, 1.0).sum(axis=-1, dtype=np.float64))


def _cuts(parameters: SamplingParameters, temperature: float) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """The cuts asked for, in their order. Each gives the ascending indices that it keeps of float32 logits [any]."""
    top_k, top_p, min_p = parameters.top_k, parameters.top_p, parameters.min_p
    if top_k is not None:
        yield lambda logits: _best(logits, top_k)
    if top_p is not None and top_p < 1.0:
        yield lambda logits: _fewest_reaching(logits, temperature, top_p)
    if min_p is not None and min_p > 0.0:
        yield lambda logits: np.flatnonzero(_at_least(logits, float(logits.max()) + temperature * math.log(min_p)))


def _best(logits: np.ndarray, number: int) -> np.ndarray:
    """Indices of the best logits and of those equal to the last of them."""
    if number >= len(logits):
        return np.arange(len(logits))
    return np.flatnonzero(logits >= np.partition(logits, -number)[-number])


def _fewest_reaching(logits: np.ndarray, temperature: float, share: float) -> np.ndarray:
    """Indices of the fewest best logits whose weight reaches this share of the whole; of equals the first ones."""
    best = logits.max()
    weights = _weights(logits, best, temperature)
    total = float(weights.sum())
    # Only the heavy need sorting and exact weights. As many tokens as logits, each below (1 - share) / 2 of the mean
    # weight, weigh together less than may be lost; the half is for rounding. A higher bar is usually low enough too.
    for num_light in (FEW_TOKENS, len(logits)):
        lightest = (1.0 - share) / 2 * total / num_light
        heavy = np.flatnonzero(_at_least(logits, float(best) + temperature * math.log(lightest)))
        ordered = np.sort(logits[heavy])[::-1]
        reached = np.cumsum(_exact_weights(ordered, best, temperature))
        if reached.size and reached[-1] > share * total * (1.0 + TOTAL_TOLERANCE):
            break
    weights[heavy] = 0.0
    light = float(weights.sum()) * np.array([1.0 - TOTAL_TOLERANCE, 1.0 + TOTAL_TOLERANCE])
    position, position_at_most = np.searchsorted(reached, share * (reached[-1] + light))
    if position != position_at_most:
        exact_light = _exact_weights(logits[np.flatnonzero(weights)], best, temperature).sum()
        position = np.searchsorted(reached, share * (reached[-1] + exact_light))
    num_kept = min(int(position) + 1, len(ordered))
    last = ordered[num_kept - 1]
    kept = np.flatnonzero(logits >= last)
    num_excess = len(kept) - num_kept
    return np.delete(kept, np.flatnonzero(logits[kept] == last)[-num_excess:]) if num_excess else kept


def _weights(logits: np.ndarray, best: np.ndarray, temperature: float) -> np.ndarray:
    """exp((logits - best) / temperature), all in float32."""
    weights = logits - best
    weights /= np.float32(temperature)
    return np.exp(weights, out=weights)


def _exact_weights(logits: np.ndarray, best: np.ndarray, temperature: float) -> np.ndarray:
    """The same in float64."""
    return np.exp((logits.astype(np.float64) - float(best)) / temperature)


def _at_least(logits: np.ndarray, floor: float) -> np.ndarray:
    """Whether float32 logits reach a float64 floor, without turning all of them into float64."""
    limits = np.finfo(np.float32)
    nearest = np.float32(min(max(floor, float(limits.min)), float(limits.max)))
    return logits >= nearest if nearest >= floor else logits > nearest


def _first_above(reached: np.ndarray, number: float) -> int:
    """The first index of an ascending array above the number, at most the first that holds the last value."""
    return int(min(np.searchsorted(reached, number, side="right"), np.searchsorted(reached, reached[-1])))


def token_log_probability(logits: np.ndarray, token: int, num_alternatives: int) -> TokenLogProbability:
    """log p of a token under float32 logits [vocab], and the best tokens with theirs, best first."""
    normaliser = float(log_normaliser(logits))
    ids = _best(logits, num_alternatives) if num_alternatives else np.arange(0)
    ids = ids[np.argsort(-logits[ids], kind="stable")][:num_alternatives]
    alternatives = tuple((int(other), float(logits[other]) - normaliser) for other in ids)
    return TokenLogProbability(token, float(logits[token]) - normaliser, alternatives)
