"""From logits to a token: penalties, grammar, cuts, and a draw that needs no memory."""

import math
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from griffinlm.executor import Draw
from griffinlm.generation.candidates import best_ids, draw_tokens, log_normaliser, uniforms
from griffinlm.generation.grammar import Matcher
from griffinlm.generation.parameters import SEEDS, SamplingError, SamplingParameters

LOGITS_AT_ONCE = 1 << 17
"""Of all rows that are computed with together (512 KiB of float32): as many as stay in a processor's cache."""


@dataclass(frozen=True)
class TokenLogProbability:
    """log p of the chosen token under the model itself, before penalties and temperature."""

    token: int
    log_probability: float
    alternatives: tuple[tuple[int, float], ...]
    """The best tokens and their log-probabilities, best first."""


class Sampler:
    """Chooses the tokens of one answer.

    The uniform number behind a token is a function of seed and place in the document alone, so that a conversation
    saved and taken up again goes on as if it had never stopped. Penalties count the tokens of this call.

    Args:
        seen: tokens that a repetition penalty counts from the beginning (`seen_ids`).
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
        seen: Sequence[int] | np.ndarray = (),
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
        self._numbers = uniforms(self.seed, first_position)
        self._number: float | None = None
        """That of the next token, where it was looked at already."""
        self._penalised = parameters.repetition_penalty != 1.0
        self._num_choices = num_choices
        ids = np.asarray(seen if self._penalised else (), np.int64)
        self._seen = ids if num_choices is None else ids[ids < num_choices]
        self._counts: Counter[int] = Counter()
        self._counted = parameters.presence_penalty != 0.0 or parameters.frequency_penalty != 0.0
        self._taken_off: np.ndarray | None = None
        self._end_ids = np.fromiter(end_ids, np.int64)
        self._num_held_back = min_tokens if self._end_ids.size else 0
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
        (found,) = choose_together([self], logits[None])
        if isinstance(found, Exception):
            raise found
        return found

    def replay(self, token_ids: Iterable[int]) -> None:
        """Takes over tokens that a sampler made like this one chose before: what follows goes on exactly as there.

        Without a seed the parameters must hold the one that was drawn there, `seed`.

        Raises:
            GrammarError: the tokens do not follow the grammar.
        """
        for token in token_ids:
            self._remember(token)
        self._numbers, self._number = uniforms(self.seed, self._position), None

    def next_draw(self) -> Draw | None:
        """How the next token is drawn, where nothing of its logits but the token matters; None where more does.

        The token that was drawn so is then told to `take_drawn`.
        """
        if self._is_adjusting or self._num_alternatives is not None:
            return None
        one = self.parameters
        if one.temperature > 0 and self._number is None:
            self._number = next(self._numbers)
        return Draw(self._number or 0.0, one.temperature, one.top_k, one.top_p, one.min_p)

    def take_drawn(self, token: int) -> None:
        """The next token is the one that an executor drew by `next_draw`.

        Raises:
            SamplingError: the executor says that the best logit is not finite.
        """
        self._number = None
        if token < 0:
            raise SamplingError("the best logit is not finite")
        self._remember(token)

    @property
    def num_choices(self) -> int | None:
        """Ids from here on are never chosen; None chooses from all."""
        return self._num_choices

    def _next_number(self) -> float:
        number, self._number = self._number, None
        return next(self._numbers) if number is None else number

    @property
    def _is_adjusting(self) -> bool:
        """Whether `_adjust` changes anything at the next token."""
        is_adjusting = self._matcher is not None or self._num_held_back > 0 or bool(self._counts)
        return is_adjusting or self._seen.size > 0 or self._biased.size > 0

    def _adjust(self, logits: np.ndarray) -> None:
        """Writes bias, penalties and what may not be chosen into float32 logits [choices]."""
        if self._matcher is not None:
            np.copyto(logits, -np.inf, where=~self._matcher.allowed()[: len(logits)])
        if self._biased.size:
            logits[self._biased] += self._bias
        if self._seen.size:
            values, penalty = logits[self._seen], np.float32(self.parameters.repetition_penalty)
            logits[self._seen] = np.where(values > 0, values / penalty, values * penalty)
        if self._counts:
            logits -= self._penalties(len(logits))
        if self._num_held_back > 0:
            logits[self._end_ids] = -np.inf

    def _take(self, token: int, logits: np.ndarray) -> None:
        """The token was chosen from these float32 logits [vocab]."""
        if self._num_alternatives is not None:
            self.latest = token_log_probability(logits, token, self._num_alternatives)
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

    def _penalties(self, num_choices: int) -> np.ndarray:
        """What the counts take off every logit."""
        if self._taken_off is None:
            self._taken_off = np.zeros(num_choices, np.float32)
            for token in self._counts:
                self._taken_off[token] = self._penalty(token)
        return self._taken_off

    def _penalty(self, token: int) -> float:
        return self.parameters.presence_penalty + self.parameters.frequency_penalty * self._counts[token]


def seen_ids(parameters: SamplingParameters, prompt: Sequence[int]) -> np.ndarray:
    """The distinct tokens of a prompt where a penalty counts them, else none; found once for all samplers behind it."""
    return np.unique(np.asarray(prompt if parameters.repetition_penalty != 1.0 else (), np.int64))


def choose_together(samplers: Sequence[Sampler], logits: np.ndarray) -> list[int | Exception]:
    """The next token of every sampler, each bit for bit the one that its sampler chooses alone.

    Where one cannot choose, the error that `Sampler.choose` raises stands in the place of its token.

    Args:
        samplers: with one `num_choices` between them.
        logits: float32 [rows, vocab], a row a sampler; they stay as they are.
    """
    num_rows = max(1, LOGITS_AT_ONCE // logits.shape[1])
    parts = [slice(start, start + num_rows) for start in range(0, len(samplers), num_rows)]
    return [found for part in parts for found in _choose(samplers[part], logits[part])]


def _choose(samplers: Sequence[Sampler], logits: np.ndarray) -> list[int | Exception]:
    (num_choices,) = {sampler._num_choices for sampler in samplers}
    adjusted = logits[:, :num_choices]
    errors: dict[int, Exception] = {}
    """By row. Whatever goes wrong with one costs no other its token."""
    if any(sampler._is_adjusting for sampler in samplers):
        adjusted = adjusted.copy()
        for row, sampler in enumerate(samplers):
            try:
                sampler._adjust(adjusted[row])
            except Exception as error:
                errors[row] = error
    tokens = adjusted.argmax(axis=1)
    for row, best in enumerate(adjusted[np.arange(len(samplers)), tokens].tolist()):
        if not math.isfinite(best):
            fault = SamplingError(f"the best logit, of token {tokens[row]}, is {best}; it must be finite")
            errors.setdefault(row, fault)
    drawn = [row for row, one in enumerate(samplers) if one.parameters.temperature > 0 and row not in errors]
    if drawn:
        rows = adjusted if len(drawn) == len(samplers) else adjusted[drawn]
        numbers = [samplers[row]._next_number() for row in drawn]
        tokens[drawn] = draw_tokens(rows, [samplers[row].parameters for row in drawn], numbers)
    found: list[int | Exception] = [*tokens.tolist()]
    for row, token in enumerate(tokens.tolist()):
        try:
            if row not in errors:
                samplers[row]._take(token, logits[row])
        except Exception as error:
            errors[row] = error
    for row, error in errors.items():
        found[row] = error
    return found


def token_log_probability(logits: np.ndarray, token: int, num_alternatives: int) -> TokenLogProbability:
    """log p of a token under float32 logits [vocab], and the best tokens with theirs, best first."""
    normaliser = float(log_normaliser(logits))
    ids = best_ids(logits, num_alternatives) if num_alternatives else np.arange(0)
    ids = ids[np.argsort(-logits[ids], kind="stable")][:num_alternatives]
    alternatives = tuple((int(other), float(logits[other]) - normaliser) for other in ids)
    return TokenLogProbability(token, float(logits[token]) - normaliser, alternatives)
