"""A LanguageModel inside lm-evaluation-harness, and tasks run with it. Needs the harness, so it is imported lazily."""

import contextlib
import io
import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.evaluator import evaluate

from griffinlm.evaluate.continuations import DEFAULT_ROWS, score_continuations
from griffinlm.evaluate.rows import Row
from griffinlm.evaluate.tasks import METRICS, TaskDefinition, TaskError, require_task, task_rows
from griffinlm.generation.answering import Options
from griffinlm.language_model import LanguageModel
from griffinlm.progress import progress

DEFAULT_MAX_TOKENS = 256
"""Of an answer where a task does not say: the harness' own default."""

EXAMPLES_SEED = 1234
"""Decides which solved examples stand before a question: the harness' own default."""


class HarnessModel(TemplateLM):
    """A LanguageModel as lm-evaluation-harness asks it. Every text begins with BOS.

    Args:
        batch_rows: texts that are read side by side; the answers do not depend on it.

    Raises:
        GriffinError: the model has no tokenizer, or that has no BOS.
    """

    def __init__(self, model: LanguageModel, batch_rows: int = DEFAULT_ROWS) -> None:
        super().__init__()
        bos_id = model.tokenizer.bos_id
        if bos_id is None:
            raise TaskError("the tokenizer has no BOS token; the first token of a text could not be scored")
        self._model, self._bos_id, self._batch_rows = model, bos_id, batch_rows

    @property
    def eot_token_id(self) -> int:
        eos_id = self._model.tokenizer.eos_id
        return self._bos_id if eos_id is None else eos_id

    @property
    def prefix_token_id(self) -> int:
        return self._bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """BOS and the ids of a text; without BOS where `add_special_tokens` is False. Text is never a control token."""
        ids = self._model.tokenizer.encode(string)
        return ids if add_special_tokens is False else [self._bos_id, *ids]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        scores = score_continuations(self._model, pairs, self._batch_rows)
        return [(float(score.log_probabilities.sum()), bool(score.is_best.all())) for score in scores]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p of each whole text after BOS, of any length, in memory that does not grow with it."""
        texts = (request.args[0] for request in requests)
        return [float(self._model.score(text).sum()) for text in progress(texts, "scoring", len(requests))]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each text, up to the first of the texts in `until`, an end token or the limit.

        Raises:
            TaskError: a task gives an option of generation that is not known here.
        """
        asked: list[tuple[str, dict[str, Any]]] = [request.arguments for request in requests]
        alike: dict[str, list[int]] = {}
        for index, (_, options) in enumerate(asked):
            alike.setdefault(json.dumps(options, sort_keys=True), []).append(index)
        batches = [
            (generation_options(json.loads(options)), indices[start : start + self._batch_rows])
            for options, indices in alike.items()
            for start in range(0, len(indices), self._batch_rows)
        ]
        texts: dict[int, str] = {}
        for options, indices in progress(batches, "writing"):
            prompts = [self.tok_encode(asked[index][0]) for index in indices]
            answers = self._model.generate(prompts, **options)
            texts.update(zip(indices, (answer.text for answer in answers), strict=True))
        return [texts[index] for index in range(len(asked))]


def generation_options(given: Mapping[str, Any]) -> Options:
    """Options of `LanguageModel.generate` out of those that a task gives the harness.

    Raises:
        TaskError: one of them is not known here.
    """
    known = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}
    unknown = sorted(given.keys() - known)
    if unknown:
        raise TaskError(f"a task asks for generation with {unknown[0]!r}; allowed are {', '.join(sorted(known))}")
    until = given.get("until") or []
    options = Options(
        stop=[until] if isinstance(until, str) else [text for text in until if text],
        max_tokens=given.get("max_gen_toks", DEFAULT_MAX_TOKENS),
        temperature=given.get("temperature", 1.0) if given.get("do_sample") else 0.0,
    )
    if given.get("do_sample"):
        options.update(Options(top_k=given.get("top_k"), top_p=given.get("top_p")))
    return options


@dataclass(frozen=True)
class TaskFigure:
    """One metric of one task."""

    task: str
    metric: str
    value: float
    standard_error: float | None
    """None where there is one document."""
    documents: int


def evaluate_tasks(
    model: LanguageModel,
    names: Sequence[str],
    directory: Path,
    limit: int | None = None,
    batch_rows: int = DEFAULT_ROWS,
) -> list[TaskFigure]:
    """Runs tasks from files of a directory through the harness; nothing is fetched.

    Args:
        limit: the first documents of each task only.

    Raises:
        GriffinError: a task or its file is unknown, a row is damaged, or the model has no tokenizer with BOS.
    """
    harness_model = HarnessModel(model, batch_rows)
    with _quiet():
        tasks: dict[str, Task] = {
            name: _FileTask(name, require_task(name), task_rows(name, directory)) for name in names
        }
        found: Any = evaluate(harness_model, {"tasks": tasks}, limit=limit, bootstrap_iters=0, log_samples=True)
    return [figure for name in names for figure in _figures(name, found["results"][name], found["samples"][name])]


class _FileTask(ConfigurableTask):
    """A task of the harness whose documents are rows that are already read."""

    def __init__(self, name: str, task: TaskDefinition, rows: list[Row]) -> None:
        self._rows = rows
        config = {
            "task": name,
            "test_split": "test",
            "fewshot_split": "test" if task.num_examples else None,
            "num_fewshot": task.num_examples,
            "metric_list": [{"metric": metric, **METRICS[metric]} for metric in task.metrics],
            **task.harness,
        }
        super().__init__(config=config)
        self.set_fewshot_seed(EXAMPLES_SEED)

    def download(self, dataset_kwargs: Any = None, **kwargs: Any) -> None:
        self.dataset = {"test": Dataset.from_list(self._rows)}


def _figures(task: str, results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> list[TaskFigure]:
    """Metrics, whose keys are "metric,filter", with standard errors from the values of single documents."""
    figures = []
    for key, value in results.items():
        metric, _, name_of_filter = key.partition(",")
        if metric not in METRICS:
            continue
        values = [float(sample[metric]) for sample in samples if sample["filter"] == name_of_filter]
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        if metric == "perplexity" and error is not None:
            # d exp(-x) = exp(-x) dx, where the values are log-probabilities.
            error *= float(value)
        name = metric if name_of_filter == "none" else key
        figures.append(TaskFigure(task, name, float(value), error, len(values)))
    return figures


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back the bars of the harness where standard error is no terminal."""
    if sys.stderr.isatty():
        yield
        return
    with contextlib.redirect_stderr(io.StringIO()):
        yield
