"""What a job may be: checked when it is submitted, told in one line."""

import operator
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np

from griffinlm.executor import check_tokens
from griffinlm.generation.answering import GenerationError, GenerationOptions
from griffinlm.generation.job import Job
from griffinlm.generation.parameters import SEEDS
from griffinlm.generation.running import ServedModel, tokenizer_of
from griffinlm.generation.store import checked_name

LARGEST_NUM_ANSWERS = 1 << 16
LONGEST_TIMEOUT_SECONDS = 1e9


def checked_options(job: Job, model: ServedModel, token_ids: Sequence[int], *, has_store: bool) -> GenerationOptions:
    """The options of a job with a seed, drawn where they have none, once everything is known to be allowed.

    Args:
        model: with the job's adapter.
        token_ids: those of the job, as plain numbers.
        has_store: whether there are kept states to go on from.

    Raises:
        GriffinError: the job cannot be run as it is.
    """
    checked_name("tenant", job.tenant)
    _check_numbers(job)
    check_tokens(model.config, np.asarray(token_ids))
    if not token_ids and job.state_id is None:
        raise GenerationError("a job has no tokens; it needs at least one, or a kept state")
    if job.state_id is not None and not has_store:
        raise GenerationError("a job goes on from a kept state, but the service has no store")
    options = job.options or GenerationOptions()
    if job.prompt_log_probabilities is not None and model.initial_state() is not None:
        raise GenerationError(f"under adapter {model.adapter!r}, a tuned state, the document cannot be scored")
    if options.stop and tokenizer_of(model) is None:
        raise GenerationError("stop strings need a tokenizer, which this model does not have")
    if options.capacity is not None:
        raise GenerationError(f"capacity is {options.capacity}; the service has one for all its jobs")
    most = model.config.vocab_size - 1
    if any(token > most for token in options.logit_bias):
        raise GenerationError(f"logit_bias names token id {max(options.logit_bias)}; ids are 0 to {most}")
    if options.sampling.seed is None:
        drawn = secrets.randbelow(SEEDS - job.num_answers)
        options = replace(options, sampling=replace(options.sampling, seed=drawn))
    return options


def whole_numbers(what: str, values: Iterable[Any]) -> list[int]:
    """Plain numbers; nothing is rounded. GenerationError where a value is none."""
    try:
        return [operator.index(value) for value in values]
    except TypeError as error:
        raise GenerationError(f"{what} of a job must be whole numbers: {error}") from error


def _check_numbers(job: Job) -> None:
    whole_numbers("boundaries", job.boundaries)
    whole_numbers("num_answers, priority", [job.num_answers, job.priority])
    most_answers = 1 if job.options is None else LARGEST_NUM_ANSWERS
    if not 1 <= job.num_answers <= most_answers:
        allowed = f"1 to {LARGEST_NUM_ANSWERS}, and 1 to read only"
        raise GenerationError(f"a job has {job.num_answers} answers; it must be {allowed}")
    alternatives = job.prompt_log_probabilities
    if alternatives is not None and min(whole_numbers("prompt_log_probabilities", [alternatives])) < 0:
        raise GenerationError(f"prompt_log_probabilities is {alternatives}; it must be 0 or above")
    timeout = job.timeout_seconds
    if timeout is not None and not (isinstance(timeout, Real) and 0 <= timeout <= LONGEST_TIMEOUT_SECONDS):
        raise GenerationError(f"timeout_seconds is {timeout!r}; it must be in 0..{LONGEST_TIMEOUT_SECONDS:.0f}")
