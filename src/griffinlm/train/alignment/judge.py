"""Rewards of answers, as TRL asks for them."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from griffinlm.train.alignment.reward_model import RewardModel

RUN_TOKENS = 4


class Judge:
    """A reward model's judgement of whole answers.

    Args:
        name: under which its mean is logged.
        unended_penalty: taken off the reward of an answer without an end token; None judges alone and logs nothing of
            the answers themselves.
    """

    def __init__(
        self, name: str, model: RewardModel, end_ids: Collection[int], unended_penalty: float | None = None
    ) -> None:
        self.__name__, self.model = name, model
        self._end_ids, self._penalty = end_ids, unended_penalty

    def __call__(
        self,
        prompts: Sequence[list[int]],
        completion_ids: Sequence[list[int]],
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float]:
        """Rewards of answers given as tokens."""
        scores = self.model.score([prompt + answer for prompt, answer in zip(prompts, completion_ids, strict=True)])
        if self._penalty is None:
            return scores
        have_ended = [answer[-1] in self._end_ids for answer in completion_ids]
        log_metric("answers/ended", sum(have_ended) / len(have_ended))
        log_metric("answers/repeated_runs", sum(map(repeated_runs, completion_ids)) / len(completion_ids))
        return [score if ended else score - self._penalty for score, ended in zip(scores, have_ended, strict=True)]


def repeated_runs(tokens: Sequence[int]) -> float:
    """Share of an answer's runs of four tokens that stand in it before."""
    runs = [tuple(tokens[start : start + RUN_TOKENS]) for start in range(len(tokens) - RUN_TOKENS + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
