"""Rewards of answers, as TRL asks for them."""

import importlib.util
import json
import math
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from griffinlm.text import Tokenizer
from griffinlm.train.alignment.config import UNENDED
from griffinlm.train.alignment.reward_model import RewardModel
from griffinlm.train.errors import TrainError

RUN_TOKENS = 4
LONGEST_SHOWN = 60

Rule = Callable[[dict[str, Any], str], Any]
"""Given the row of a prompt and the text of an answer, a number of how well that does."""


class Judge:
    """A reward model's judgement of whole answers.

    Args:
        name: under which its mean is logged.
    """

    def __init__(self, name: str, model: RewardModel) -> None:
        self.__name__, self.model = name, model

    def __call__(self, prompts: Sequence[list[int]], completion_ids: Sequence[list[int]], **_: Any) -> list[float]:
        """Rewards of answers given as tokens."""
        return self.model.score([prompt + answer for prompt, answer in zip(prompts, completion_ids, strict=True)])


class RuleJudge:
    """What a function says of an answer's text and the row that it answers.

    Args:
        name: under which its mean is logged.
    """

    def __init__(self, name: str, rule: Rule, tokenizer: Tokenizer) -> None:
        self.__name__, self._rule, self._tokenizer = name, rule, tokenizer

    def __call__(self, completion_ids: Sequence[list[int]], row: Sequence[str], **_: Any) -> list[float]:
        """Rewards of answers to rows given as JSON.

        Raises:
            TrainError: the function fails, or gives something else than a finite number.
        """
        return [self._reward(json.loads(values), ids) for values, ids in zip(row, completion_ids, strict=True)]

    def _reward(self, row: dict[str, Any], answer: list[int]) -> float:
        try:
            found = float(self._rule(row, self._tokenizer.decode(answer).strip()))
        except Exception as error:
            raise self._error(f"raised {type(error).__name__}: {error}", row) from error
        if not math.isfinite(found):
            raise self._error(f"gave {found}, no finite number", row)
        return found

    def _error(self, what: str, row: dict[str, Any]) -> TrainError:
        return TrainError(f"rules.{self.__name__} {what}, for the row {json.dumps(row)[:LONGEST_SHOWN]}")


class Unended:
    """1 for an answer without an end token, else 0; logs the share that ended, and how often answers repeat runs."""

    def __init__(self, end_ids: Collection[int]) -> None:
        self.__name__, self._end_ids = UNENDED, end_ids

    def __call__(
        self, completion_ids: Sequence[list[int]], log_metric: Callable[[str, float], None], **_: Any
    ) -> list[float]:
        """1 or 0 for every answer given as tokens."""
        found = [float(answer[-1] not in self._end_ids) for answer in completion_ids]
        log_metric("answers/ended", 1 - sum(found) / len(found))
        log_metric("answers/repeated_runs", sum(map(repeated_runs, completion_ids)) / len(completion_ids))
        return found


def read_rule(file: Path, function: str) -> Rule:
    """A function of a Python file, which is run as a script is: it imports what lies beside it.

    Raises:
        TrainError: there is no such file or function, or the file fails when it is run.
    """
    place = importlib.util.spec_from_file_location(file.stem, file)
    if place is None or place.loader is None:
        raise TrainError(f"rule {file} is no Python file")
    module = importlib.util.module_from_spec(place)
    sys.path.insert(0, str(file.parent))
    try:
        place.loader.exec_module(module)
    except Exception as error:
        raise TrainError(f"rule {file} cannot be run: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(file.parent))
    found = getattr(module, function, None)
    if not callable(found):
        raise TrainError(f"rule {file} has no function {function}")
    return found


def repeated_runs(tokens: Sequence[int]) -> float:
    """Share of an answer's runs of four tokens that stand in it before."""
    runs = [tuple(tokens[start : start + RUN_TOKENS]) for start in range(len(tokens) - RUN_TOKENS + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
