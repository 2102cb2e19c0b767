"""What a service is asked for, and what it tells."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from griffinlm.generation.answering import GenerationOptions
from griffinlm.generation.request import FinishReason
from griffinlm.generation.sampling import TokenLogProbability


@dataclass(frozen=True, eq=False)
class Job:
    """One document to go on with."""

    tenant: str
    """Only states of this tenant, and shared ones, are found; what is kept is kept for it."""
    token_ids: Sequence[int]
    """The whole document, BOS first; with `state_id` what comes behind the state's."""
    options: GenerationOptions | None = field(default_factory=GenerationOptions)
    """None writes nothing: the document is read, kept, scored."""
    state_id: str | None = None
    """A kept state to go on from exactly, its pending token first."""
    adapter: str | None = None
    """One of the model's adapters; None is the model as the service has it."""
    num_answers: int = 1
    """Answers to the document, which is read once. The seed of the options is counted on from the first to the last."""
    boundaries: Sequence[int] = ()
    """Numbers of the document's tokens after which a state is worth keeping: the ends of messages."""
    keep: bool = True
    """Whether states are kept, where the service has a store."""
    prompt_log_probabilities: int | None = None
    """How many alternatives to report beside the log-probability of each token of the document but the first.

    None reports nothing. Otherwise all of the document is read anew.
    """
    extract: Callable[[Mapping[str, Any]], Any] | None = None
    """Given the arrays of the state that has read the document but for its last token, where one is handed over.

    What it returns is told with the end; the state is not held for it. It must not raise.
    """
    priority: int = 0
    """Higher goes first; whoever waits rises with time."""
    timeout_seconds: float | None = None
    """Time until the answer ends with what it has; None is no limit."""


@dataclass(frozen=True)
class Piece:
    """Text set free, with the tokens chosen since the last piece of the same answer."""

    job: Job
    answer: int
    """Which of the job's answers, from 0."""
    text: str
    """Joined over all pieces the text of the answer; empty where the model has no tokenizer."""
    token_ids: list[int]
    log_probabilities: list[TokenLogProbability] | None
    """Of these tokens, where they were asked for."""


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer."""

    num_prompt_tokens: int
    """Of the document before the answer."""
    num_cached_tokens: int
    """Of these, how many were not read, since a kept state had read them."""
    num_written_tokens: int


@dataclass(frozen=True)
class End:
    """The end of an answer. Everything that it tells of as kept survives a crash."""

    job: Job
    answer: int
    finish_reason: FinishReason
    """"length" too where nothing was to be written."""
    text: str
    token_ids: list[int]
    """All tokens chosen, the last of which is pending in the state at the end."""
    log_probabilities: list[TokenLogProbability] | None
    prompt_log_probabilities: list[TokenLogProbability] | None
    usage: Usage
    prompt_state_id: str | None = None
    """The state of the whole document before the answer, its last token pending."""
    end_state_id: str | None = None
    """The state of document and answer, its last token pending."""
    state_ids: Mapping[int, str] = field(default_factory=dict)
    """All states kept, by the number of tokens that they have read."""
    extracted: Any = None
    """What `Job.extract` gave."""
    not_kept: str | None = None
    """Why a state that was to be kept was not."""
    error: Exception | None = None
    """What was wrong, with finish reason "error"."""


Event = Piece | End


@dataclass
class Counts:
    """What a service has done since it was made, in tokens and states."""

    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    """Of the prompt tokens, how many a kept state had read."""
    num_written_tokens: int = 0
    num_starts: int = 0
    num_prefix_hits: int = 0
    """Starts from a kept state."""
    num_reread_replies: int = 0
    """Starts at which the text of a reply came back, but cut into other tokens than had been chosen."""
    num_states_kept: int = 0
    num_states_not_kept: int = 0
    """Refused by the store."""
    num_failed_lookups: int = 0
    """Starts from the beginning because the store could not be asked."""
