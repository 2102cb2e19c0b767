"""A suspended answer: everything that is needed to go on exactly where it stopped, in one file."""

import dataclasses
import json
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from griffinlm.errors import GriffinError
from griffinlm.executor import check_tokens
from griffinlm.generation.answering import GenerationOptions
from griffinlm.generation.grammar import schema_text
from griffinlm.generation.parameters import SamplingParameters
from griffinlm.generation.sampling import TokenLogProbability
from griffinlm.state import (
    NOTHING_PENDING,
    State,
    StateError,
    StateOwner,
    check_layout,
    read_whole,
    seal,
    unseal,
    write_whole,
)

KIND = "suspended answer"
TOKEN_IDS, WRITTEN_IDS = "suspended.token_ids", "suspended.written_ids"
"""Names of the arrays beside those of the state."""


class AdaptedModel(StateOwner, Protocol):
    """What must be known of a model to load an answer that it, or one of its adapters, was writing."""

    adapter: str | None

    @property
    def adapter_names(self) -> tuple[str, ...]: ...
    def with_adapter(self, name: str | None) -> Self: ...


@dataclass(frozen=True)
class Suspended:
    """An answer that was stopped anywhere: waiting, while its prompt was read, or in the middle of a sentence.

    It belongs to no tenant: whoever holds it can go on with it, by `GenerationService.resume`.
    """

    state: State
    """Of one row, after the first tokens of document and answer."""
    token_ids: list[int]
    """The document before the answer."""
    written_ids: list[int]
    """Tokens of the answer so far."""
    num_told: int
    """How many of them pieces have told of; the others wait for their text, which may begin a stop string."""
    options: GenerationOptions | None
    """With the seed that was drawn; None where nothing is to be written."""
    adapter: str | None = None
    boundaries: Sequence[int] = ()
    """As in `Job`."""
    log_probabilities: Sequence[TokenLogProbability] = ()
    """Of the written tokens, where they were asked for."""
    num_prompt_alternatives: int | None = None
    """`Job.prompt_log_probabilities`."""
    prompt_log_probabilities: Sequence[TokenLogProbability] = ()
    """Of the document's tokens from the second on, as far as it was read."""

    @property
    def num_read(self) -> int:
        """Tokens of document and answer that the state has read."""
        return int(self.state.num_tokens[0])

    def to_bytes(self) -> bytes:
        """A safetensors file with fingerprint and checksum."""
        ids = {TOKEN_IDS: self.token_ids, WRITTEN_IDS: self.written_ids}
        details = {
            "options": None if self.options is None else _as_json(self.options),
            "num_told": self.num_told,
            "boundaries": list(self.boundaries),
            "log_probabilities": [dataclasses.astuple(one) for one in self.log_probabilities],
            "num_prompt_alternatives": self.num_prompt_alternatives,
            "prompt_log_probabilities": [dataclasses.astuple(one) for one in self.prompt_log_probabilities],
        }
        arrays = self.state.arrays() | {name: np.asarray(value, np.int32) for name, value in ids.items()}
        return seal(arrays, self.state.identity, details)

    @classmethod
    def from_bytes(cls, content: bytes, model: AdaptedModel, name: str = "") -> "Suspended":
        """What `to_bytes` made for the same model, whatever its adapter is called here.

        Args:
            name: of the content in messages.

        Raises:
            StateError: it is damaged, no suspended answer, or belongs to another model or adapter.
        """
        name = name or f"of {len(content)} bytes"
        arrays, details, fingerprint = sealed = unseal(content, KIND, name)
        views = (model, *(model.with_adapter(other) for other in model.adapter_names))
        owner = next((one for one in views if one.identity.fingerprint.adapter == fingerprint["adapter"]), model)
        sealed.require_of(owner, f"{KIND} {name}")
        try:
            ids = [arrays.pop(key) for key in (TOKEN_IDS, WRITTEN_IDS)]
            found = cls(
                state=State(arrays, owner.identity),
                token_ids=ids[0].tolist(),
                written_ids=ids[1].tolist(),
                options=None if details["options"] is None else _options(details["options"]),
                adapter=owner.adapter,
                num_told=operator.index(details["num_told"]),
                boundaries=[operator.index(place) for place in details["boundaries"]],
                log_probabilities=[_log_probability(one) for one in details["log_probabilities"]],
                num_prompt_alternatives=_count(details["num_prompt_alternatives"]),
                prompt_log_probabilities=[_log_probability(one) for one in details["prompt_log_probabilities"]],
            )
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise StateError(f"{name} is no {KIND} of griffinlm") from error
        check_layout(arrays, owner, f"{KIND} {name}")
        _check(found, owner, ids, name)
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `to_bytes` to a file, whole or not at all, readable by its owner alone.

        Raises:
            StateError: the file cannot be written; nothing is left behind.
        """
        write_whole(path, self.to_bytes(), KIND)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: AdaptedModel) -> "Suspended":
        """Reads what `save` wrote for the same model; StateError as for `from_bytes`, and where there is no file."""
        return cls.from_bytes(read_whole(path, KIND), model, str(path))


def _as_json(options: GenerationOptions) -> dict[str, Any]:
    # JSON has no numbers for keys.
    return {**dataclasses.asdict(options), "logit_bias": list(options.logit_bias.items())}


def _options(values: Mapping[str, Any]) -> GenerationOptions:
    sampling = SamplingParameters(**values["sampling"])
    bias = {operator.index(token): value for token, value in values["logit_bias"]}
    schema = None if values["json_schema"] is None else schema_text(json.loads(values["json_schema"]))
    changed = {"stop": tuple(values["stop"]), "json_schema": schema, "logit_bias": bias, "sampling": sampling}
    return GenerationOptions(**{**values, **changed})


def _count(value: Any) -> int | None:
    return None if value is None else operator.index(value)


def _log_probability(values: Sequence[Any]) -> TokenLogProbability:
    token, value, alternatives = values
    others = tuple((operator.index(other), float(number)) for other, number in alternatives)
    return TokenLogProbability(operator.index(token), float(value), others)


def _check(found: Suspended, model: StateOwner, ids: Sequence[np.ndarray], name: str) -> None:
    """Refuses what a well-made file cannot hold."""
    if any(array.ndim != 1 or array.dtype != np.int32 for array in ids) or found.state.rows != 1:
        raise StateError(f"{KIND} {name} does not hold the tokens and the state of one row")
    try:
        check_tokens(model.config, np.concatenate(ids))
    except GriffinError as error:
        raise StateError(f"{KIND} {name}: {error}") from error
    num_tokens, num_written, num_read = len(found.token_ids), len(found.written_ids), found.num_read
    is_read = num_read == num_tokens + num_written - 1 if num_written else num_read < num_tokens
    is_read &= num_tokens > 0 and 0 <= found.num_told <= num_written
    is_open = num_written < (1 if found.options is None else found.options.max_tokens)
    if not (is_read and is_open) or found.state.pending[0] != NOTHING_PENDING:
        raise StateError(
            f"{KIND} {name} has {num_tokens} tokens, {num_written} written and {num_read} read; that cannot be"
        )
    num_scored = 0 if found.num_prompt_alternatives is None else min(num_read, num_tokens - 1)
    num_logs = 0 if found.options is None or found.options.log_probabilities is None else num_written
    if (len(found.prompt_log_probabilities), len(found.log_probabilities)) != (num_scored, num_logs):
        raise StateError(f"{KIND} {name} does not have a log-probability for each token that one was asked of")
