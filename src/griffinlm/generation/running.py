"""A job on its way through a service: its document, its answers, and the states that are being kept."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from griffinlm.executor import Engine, Executor
from griffinlm.generation.answering import GenerationError, GenerationOptions, new_completion
from griffinlm.generation.completion import Completion, step_and_write, write_together
from griffinlm.generation.job import End, Job, Piece, Usage
from griffinlm.generation.keeping import Chain, Kept
from griffinlm.generation.prompt_scores import PromptScores
from griffinlm.generation.request import FinishReason, Request
from griffinlm.generation.sampling import seen_ids
from griffinlm.generation.store import StateStore, StoredState
from griffinlm.generation.suspended import Suspended
from griffinlm.state import NOTHING_PENDING, State, StateOwner
from griffinlm.text import Tokenizer, TokenizerError


class ServedModel(StateOwner, Protocol):
    """What a service must know of a model; `griffinlm.LanguageModel` is one."""

    engine: Engine
    adapter: str | None

    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def initial_ids(self) -> list[int]: ...
    def initial_state(self, rows: int = 1) -> State | None: ...
    def new_state(self, rows: int = 1, capacity: int | None = None) -> State: ...
    def with_adapter(self, name: str | None) -> "ServedModel": ...


def tokenizer_of(model: ServedModel) -> Tokenizer | None:
    """None where the model has none."""
    try:
        return model.tokenizer
    except TokenizerError:
        return None


class Found(NamedTuple):
    """What a store knows of a job's document."""

    token_ids: list[int]
    """The whole document."""
    state_id: str | None = None
    state: StoredState | None = None
    """What has read its beginning."""
    fault: str | None = None
    """Why the store could not be asked."""


def find_in_store(store: StateStore, job: Job, token_ids: Sequence[int], is_read_anew: bool) -> Found:
    """The document of a job and the kept state to begin from, which leaves at least its last token to be read.

    Args:
        token_ids: the document as far as the job tells it.
        is_read_anew: whether no state is wanted.

    Raises:
        StoreError: the job's state is not there or damaged. Whatever else is wrong with the store is told in `fault`.
    """
    if job.state_id is not None:
        stored = store.get(job.tenant, job.state_id)
        pending = int(stored.arrays["pending"][0])
        document = [*stored.token_ids.tolist(), *([] if pending == NOTHING_PENDING else [pending]), *token_ids]
        if len(document) == len(stored.token_ids):
            raise GenerationError("the state has no pending token and no tokens come after it, so nothing can be read")
        return Found(document) if is_read_anew else Found(document, job.state_id, stored)
    document = list(token_ids)
    if is_read_anew:
        return Found(document)
    try:
        return Found(document, *store.get_longest_prefix(job.tenant, document[:-1]))
    except Exception as error:  # The document can be read from its beginning whatever goes wrong.
        return Found(document, fault=str(error) or repr(error))


@dataclass(eq=False)
class Row:
    """One answer of a job, as the scheduler's request has it."""

    running: "Running"
    index: int
    completion: Completion
    chain: Chain
    num_told: int = 0
    """Tokens that pieces have told of."""
    request: Request = field(init=False)
    kept: dict[int, "Future[Kept]"] = field(default_factory=dict)
    """States on their way to the store, by the number of tokens that they have read."""
    finish_reason: FinishReason | None = None
    error: Exception | None = None

    @property
    def is_complete(self) -> bool:
        return self.completion.is_complete

    @property
    def num_read(self) -> int:
        """Tokens of document and answer that the model has read while this row writes: all but the last."""
        return self.running.num_prompt_tokens + len(self.completion.token_ids) - 1

    @property
    def futures(self) -> list["Future[Kept]"]:
        """Of all states that its end tells of."""
        return [*self.running.kept.values(), *self.kept.values()]

    def document(self) -> list[int]:
        """All tokens before the answer and of it."""
        return [*self.running.token_ids, *self.completion.token_ids]

    def piece(self) -> Piece | None:
        """What has become free; tokens whose text is still held back wait for it."""
        text, completion = self.completion.take_piece(), self.completion
        has_news = text or self.finish_reason is not None or not completion.has_text
        if not has_news or (not text and self.num_told == len(completion.token_ids)):
            return None
        first, self.num_told = self.num_told, len(completion.token_ids)
        logs = completion.log_probabilities[first:] if self.running.has_log_probabilities else None
        return Piece(self.running.job, self.index, text, completion.token_ids[first:], logs)

    def end(self) -> End:
        """Told once all states are kept or refused."""
        assert self.finish_reason is not None
        running, completion = self.running, self.completion
        found = {place: future.result() for place, future in {**running.kept, **self.kept}.items()}
        ids = {place: kept.id for place, kept in found.items() if kept.id is not None}
        num_written = len(completion.token_ids)
        return End(
            job=running.job,
            answer=self.index,
            finish_reason=self.finish_reason,
            text=completion.text,
            token_ids=completion.token_ids,
            log_probabilities=completion.log_probabilities if running.has_log_probabilities else None,
            prompt_log_probabilities=None if running.scores is None else running.scores.found,
            usage=Usage(running.num_prompt_tokens, min(running.num_cached, running.num_prompt_tokens), num_written),
            prompt_state_id=ids.get(running.num_prompt_tokens - 1),
            end_state_id=ids.get(self.num_read) if num_written else None,
            state_ids=ids,
            extracted=running.extracted,
            not_kept=next((kept.fault for kept in found.values() if kept.fault is not None), None),
            error=self.error,
        )


def write_rows(rows: Sequence[Row], logits: np.ndarray) -> list[int | Exception]:
    """`write_together` for the answers of rows."""
    return write_together([row.completion for row in rows], logits)


def step_rows(
    executor: Executor, rows: Sequence[Row], slots: Sequence[int], tokens: Sequence[int]
) -> Sequence[int | Exception | None]:
    """`step_and_write` for the answers of rows."""
    return step_and_write(executor, [row.completion for row in rows], slots, tokens)


@dataclass(eq=False)
class Running:
    """A job and what has become of it so far."""

    job: Job
    model: ServedModel
    options: GenerationOptions
    """With the seed that was drawn."""
    token_ids: list[int]
    """The document before the answer, as far as known; whole once `has_begun`."""
    suspended: Suspended | None = None
    """Where the job goes on from, until that stands in a slot."""
    store: StateStore | None = None
    rows: list[Row] = field(default_factory=list)
    fetched: "Future[Found] | None" = None
    has_begun: bool = False
    num_cached: int = 0
    chain: Chain = field(default_factory=Chain)
    kept: dict[int, "Future[Kept]"] = field(default_factory=dict)
    """States of the document, as in `Row.kept`."""
    scores: PromptScores | None = None
    extracted: Any = None

    def __post_init__(self) -> None:
        self._seen = seen_ids(self.options.sampling, self.token_ids)
        if self.job.prompt_log_probabilities is not None:
            found = () if self.suspended is None else self.suspended.prompt_log_probabilities
            self.scores = PromptScores(self.job.prompt_log_probabilities, self.model.config.vocab_size, found)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def has_log_probabilities(self) -> bool:
        return self.options.log_probabilities is not None

    @property
    def is_read_anew(self) -> bool:
        return self.job.prompt_log_probabilities is not None

    @property
    def keeps(self) -> bool:
        return self.job.keep and self.store is not None

    def new_completion(self, index: int) -> Completion:
        """Of one answer to the document as far as it is known."""
        completion = new_completion(self.options, index, self._seen, len(self.token_ids), tokenizer_of(self.model))
        if self.suspended is not None:
            completion.replay(self.suspended.written_ids, self.suspended.log_probabilities)
        return completion

    def know(self, token_ids: list[int]) -> None:
        """The whole document is known."""
        if token_ids != self.token_ids:
            self.token_ids = token_ids
            self._seen = seen_ids(self.options.sampling, token_ids)
            for row in self.rows:
                row.completion = self.new_completion(row.index)
        if self.scores is not None:
            self.scores.token_ids = token_ids
