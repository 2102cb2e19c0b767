"""Answers to prompts: requests to a scheduler, their tokens back to text."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, TypedDict

import numpy as np

from griffinlm.errors import GriffinError
from griffinlm.executor import Executor
from griffinlm.generation.completion import Completion, Generation, step_and_write, with_last_pending, write_together
from griffinlm.generation.grammar import Matcher, schema_text
from griffinlm.generation.parameters import SamplingParameters
from griffinlm.generation.request import Request, TokenEvent
from griffinlm.generation.sampling import Sampler, seen_ids
from griffinlm.generation.scheduler import Scheduler
from griffinlm.state import State
from griffinlm.text import Tokenizer

MOST_BIAS = 100
MAX_COUNT = 1 << 40
"""Of tokens and alternatives, so that sums of them stay whole numbers of 64 bits."""


class GenerationError(GriffinError):
    """An option of generation that is unknown or out of its range."""


class Options(TypedDict, total=False):
    """The options of `LanguageModel.generate` and `stream`; `SamplingParameters` describes those of sampling."""

    max_tokens: int
    min_tokens: int
    stop: str | Sequence[str]
    json_schema: Mapping[str, Any] | None
    log_probabilities: int | None
    logit_bias: Mapping[int, float]
    capacity: int | None
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None


@dataclass(frozen=True)
class GenerationOptions:
    """Checked options of one call."""

    max_tokens: int = 256
    min_tokens: int = 0
    """Tokens before which no end token is chosen."""
    stop: tuple[str, ...] = ()
    json_schema: str | None = None
    """JSON text of a schema (`schema_text`). The answer follows it, and ends where nothing but an end token may."""
    log_probabilities: int | None = None
    """How many alternatives to report beside the log-probability of each chosen token; None reports nothing."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of single tokens before anything else, by token; from -100 to 100 each."""
    capacity: int | None = None
    """Tokens that the new state of a model with global attention has room for; None is room for this call."""
    sampling: SamplingParameters = field(default_factory=SamplingParameters)

    @classmethod
    def of(cls, options: Options) -> "GenerationOptions":
        """Checked options.

        Raises:
            GenerationError, SamplingError, GrammarError: an option is unknown, of the wrong type or out of range.
        """
        own = {field.name for field in fields(cls)} - {"sampling"}
        sampling = {field.name for field in fields(SamplingParameters)}
        unknown = [name for name in options if name not in own | sampling]
        if unknown:
            raise GenerationError(
                f"unknown option {unknown[0]!r}; allowed are {', '.join(sorted(own | sampling | {'state'}))}"
            )
        values: dict[str, Any] = {name: value for name, value in options.items() if name in own}
        stop = values.get("stop") or ()
        if not isinstance(stop, str | list | tuple):
            raise GenerationError(f"stop is {stop!r}; it must be text or a list of texts")
        values["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
        if values.get("json_schema") is not None:
            values["json_schema"] = schema_text(values["json_schema"])
        chosen: dict[str, Any] = {name: value for name, value in options.items() if name in sampling}
        parameters = SamplingParameters(**chosen)
        return cls(**values, sampling=parameters)

    def __post_init__(self) -> None:
        for name, least in (("max_tokens", 1), ("min_tokens", 0), ("log_probabilities", 0), ("capacity", 1)):
            value = getattr(self, name)
            if value is None and name in ("log_probabilities", "capacity"):
                continue
            if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
                raise GenerationError(f"{name} is {value!r}; it must be a whole number, {least} or above")
            if int(value) > MAX_COUNT:
                raise GenerationError(f"{name} is above {MAX_COUNT}, the most that is allowed")
        if self.min_tokens > self.max_tokens:
            raise GenerationError(f"min_tokens is {self.min_tokens}; it must be at most max_tokens, {self.max_tokens}")
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise GenerationError(f"stop is {text!r}; a stop string must be text of at least one character")
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise GenerationError(f"stop is {text!r}; it holds half a surrogate pair, which is no character")
        if not isinstance(self.logit_bias, Mapping):
            raise GenerationError(f"logit_bias is {self.logit_bias!r}; it must be a table of tokens and numbers")
        for token, bias in self.logit_bias.items():
            if isinstance(token, bool) or not isinstance(token, Integral) or token < 0:
                raise GenerationError(f"logit_bias names token {token!r}; it must be a whole number, 0 or above")
            if isinstance(bias, bool) or not isinstance(bias, Real) or not -MOST_BIAS <= bias <= MOST_BIAS:
                raise GenerationError(f"logit_bias of token {token} is {bias!r}; it must be in -100..100")


class Answers:
    """The answers to several prompts, written side by side on one executor. Each prompt is read once.

    Args:
        executor: slots, all empty.
        prompts: ids to read, the pending token of a state first.
        states: where each conversation stands; None is its beginning.
        make_state: turns the arrays of one row into a State of the model.
        num_answers: to each prompt; where a seed is given, each has one of its own, counted on from it.
        adapter: the executor's, for all of them.

    Raises:
        SamplingError, GrammarError: the last of the seeds is out of range, or the tokenizer cannot write to the schema.
    """

    def __init__(
        self,
        executor: Executor,
        prompts: Sequence[list[int]],
        states: Sequence[State | None],
        options: GenerationOptions,
        tokenizer: Tokenizer | None,
        make_state: Callable[[dict[str, np.ndarray]], State],
        num_answers: int = 1,
        adapter: str | None = None,
    ) -> None:
        self._scheduler = Scheduler(
            executor,
            lambda ids: np.asarray([ids], np.int64),
            choose=write_together,
            step=step_and_write,
        )
        self._make_state = make_state
        self._completions: dict[Request, Completion] = {}
        self._results: dict[Request, Generation] = {}
        for prompt, state in zip(prompts, states, strict=True):
            requests, arrays = [], None if state is None else state.arrays()
            seen = seen_ids(options.sampling, prompt)
            first_position = len(prompt) + (0 if state is None else int(state.num_tokens[0]))
            for index in range(num_answers):
                completion = new_completion(options, index, seen, first_position, tokenizer)
                requests.append(
                    Request(prompt, completion, options.max_tokens, end_ids(tokenizer), arrays, adapter=adapter)
                )
                self._completions[requests[-1]] = completion
            self._scheduler.submit_group(requests)

    def pieces(self) -> Iterator[tuple[int, str]]:
        """Runs to the end; gives text as it is set free, with the index of its answer in `results`.

        Raises:
            GriffinError: a prompt, state or logits are not what they must be.
        """
        index = {request: i for i, request in enumerate(self._completions)}
        while self._scheduler.busy:
            for event in self._scheduler.step():
                assert isinstance(event, TokenEvent), "no state is asked for before the end"
                if event.error is not None:
                    raise event.error
                completion = self._completions[event.request]
                if event.finish_reason is not None:
                    reason = completion.finish(event.finish_reason)
                    remainder = event.remainder
                    assert remainder is not None
                    assert remainder.state is not None
                    state = self._make_state(with_last_pending(remainder.state, remainder.unread[0]))
                    self._results[event.request] = completion.result(reason, state)
                piece = completion.take_piece()
                if piece:
                    yield index[event.request], piece

    def stop(self) -> State | None:
        """Ends the only answer where it stands; its state, or None where its prompt is not read to the end."""
        (request,) = self._completions
        if request in self._results:
            return self._results[request].state
        remainder = self._scheduler.cancel(request)
        if remainder is None or remainder.state is None or len(remainder.unread) != 1:
            return None
        return self._make_state(with_last_pending(remainder.state, remainder.unread[0]))

    def results(self) -> list[Generation]:
        """The answers in the order of the prompts, those to one side by side, once `pieces` has run to its end.

        Raises:
            GenerationError: it was stopped before.
        """
        if len(self._results) < len(self._completions):
            raise GenerationError("the answer was not written to its end, so it has no result")
        return [self._results[request] for request in self._completions]


def end_ids(tokenizer: Tokenizer | None) -> frozenset[int]:
    """Tokens that end an answer."""
    return frozenset() if tokenizer is None else tokenizer.end_ids


def new_completion(
    options: GenerationOptions, index: int, seen: np.ndarray, first_position: int, tokenizer: Tokenizer | None
) -> Completion:
    """One of several answers to a prompt; where a seed is given, each has its own, counted on from it.

    Args:
        seen: `seen_ids` of the prompt.
        first_position: place in the document of the answer's first token.

    Raises:
        SamplingError, GrammarError: the last of the seeds is out of range, or the tokenizer cannot write to the schema.
    """
    stream = None if tokenizer is None else tokenizer.stream()
    return Completion(_sampler(options, index, seen, first_position, tokenizer), stream, options.stop)


def _sampler(
    options: GenerationOptions, index: int, seen: np.ndarray, first_position: int, tokenizer: Tokenizer | None
) -> Sampler:
    parameters = options.sampling
    if parameters.seed is not None:
        parameters = replace(parameters, seed=parameters.seed + index)
    return Sampler(
        parameters,
        seen,
        first_position=first_position,
        end_ids=end_ids(tokenizer),
        min_tokens=options.min_tokens,
        num_choices=None if tokenizer is None else tokenizer.vocab_size,
        num_alternatives=options.log_probabilities,
        matcher=_matcher(options.json_schema, tokenizer),
        logit_bias=options.logit_bias,
    )


def _matcher(schema: str | None, tokenizer: Tokenizer | None) -> Matcher | None:
    if schema is None:
        return None
    if tokenizer is None:
        raise GenerationError("json_schema needs a tokenizer, which this model does not have")
    return Matcher(schema, tokenizer)
