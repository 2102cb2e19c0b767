"""Preferences and prompts as tokens."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from griffinlm.evaluate.documents import DocumentError, RowRules, read_rows
from griffinlm.progress import progress
from griffinlm.text import Tokenizer, TokenizerError
from griffinlm.train.alignment.config import AlignmentConfig
from griffinlm.train.data.conversations import (
    ANSWERER,
    Message,
    checked_messages,
    checked_text,
    encode_conversation,
)
from griffinlm.train.data.token_file import IGNORED
from griffinlm.train.errors import TrainError
from griffinlm.train.sharding import rank

USER = "user"
PROMPT, CHOSEN, REJECTED = "prompt", "chosen", "rejected"


class Measured(Protocol):
    """A row that knows its length."""

    @property
    def num_tokens(self) -> int: ...


Row = TypeVar("Row", bound=Measured)


class Pair(NamedTuple):
    """Two answers to a prompt, as tokens."""

    prompt: list[int]
    """Up to where the answer begins, BOS first."""
    chosen: list[int]
    """The better answer, its end token last."""
    rejected: list[int]

    @property
    def num_tokens(self) -> int:
        """Of the prompt with its longer answer."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


class Prompt(NamedTuple):
    """What is to be answered."""

    tokens: list[int]
    row: str
    """All that the row of the file holds, as JSON, for rules."""

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)


@dataclass
class Split(Generic[Row]):
    """The rows of a run."""

    train: list[Row] = field(default_factory=list)
    held_out: list[Row] = field(default_factory=list)
    num_left_out: int = 0
    """Longer than a row may be."""


Parse = Callable[[Any, Tokenizer], tuple[str, Row]]
"""A row of a file as tokens, with what the user says first; raises DocumentError."""


def parse_pair(values: Any, tokenizer: Tokenizer) -> tuple[str, Pair]:
    """`{prompt, chosen, rejected}`: each text, or messages; an answer is one message of the assistant's."""
    messages = _prompt(values)
    prompt = tokenizer.encode_chat(messages)
    chosen, rejected = (_encoded_answer(tokenizer, messages, len(prompt), values, name) for name in (CHOSEN, REJECTED))
    if chosen == rejected:
        raise DocumentError("chosen and rejected are the same, so nothing is preferred")
    return messages[0]["content"], Pair(prompt, chosen, rejected)


def parse_prompt(values: Any, tokenizer: Tokenizer) -> tuple[str, Prompt]:
    """`{prompt}`: text, or messages; what else a row holds is for rules to read."""
    messages = _prompt(values)
    return messages[0]["content"], Prompt(tokenizer.encode_chat(messages), json.dumps(values))


def read_split(
    config: AlignmentConfig,
    tokenizer: Tokenizer,
    parse: Parse[Row],
    most_tokens: int,
    report: Callable[[DocumentError], None] | None = None,
) -> Split[Row]:
    """All rows of a run. Those with the same first words of the user stand on the same side.

    Args:
        most_tokens: rows whose `num_tokens` is above are left out.
        report: called with every bad row that is skipped.

    Raises:
        DocumentError: a file cannot be read, or a row is not as `parse` wants it.
        TrainError: nothing is left to learn from.
    """
    data, found = config.data, Split()

    def tell(error: DocumentError) -> None:
        if report is not None and rank() == 0:
            report(error)

    def parsed(values: Any) -> tuple[str, Row]:
        try:
            return parse(values, tokenizer)
        except TokenizerError as error:
            raise DocumentError(str(error), error.hint) from error

    on_bad_row = tell if data.bad_rows == "skip" else None
    rules = RowRules(largest_row_bytes=data.largest_row_bytes, allow_empty=False, on_bad_row=on_bad_row)
    for name, source in config.sources.items():
        rows = (row for file in source.files for row in read_rows(Path(file), parsed, rules))
        for number, (first_words, row) in enumerate(progress(rows, f"reading {name}"), start=1):
            if row.num_tokens > most_tokens:
                found.num_left_out += 1
            elif _place(first_words) < data.held_out_share:
                found.held_out.append(row)
            else:
                found.train.append(row)
            if number == source.max_rows:
                break
    if not found.train:
        raise TrainError(
            f"no row is left to learn from: {len(found.held_out)} are held out, {found.num_left_out} are longer than "
            f"{most_tokens} tokens"
        )
    return found


def _place(text: str) -> float:
    """A number from 0 to 1 that depends on the text alone, by which rows are held out."""
    return int(hashlib.sha256(text.encode("utf-8")).hexdigest()[:16], 16) / 2**64


def _prompt(values: Any) -> list[Message]:
    if not isinstance(values, Mapping):
        raise DocumentError(f"the row is a {type(values).__name__}; it must be a table")
    messages = _messages(values, PROMPT, USER)
    if messages[-1]["role"] == ANSWERER:
        raise DocumentError(f'"{PROMPT}" ends with a message of the {ANSWERER}; an answer follows it')
    return messages


def _encoded_answer(
    tokenizer: Tokenizer, messages: list[Message], num_prompt_tokens: int, values: Any, name: str
) -> list[int]:
    answers = _messages(values, name, ANSWERER)
    if [message["role"] for message in answers] != [ANSWERER] or not answers[0]["content"].strip():
        raise DocumentError(f"{json.dumps(name)} must be one message of the {ANSWERER}, and say something")
    labels = encode_conversation(tokenizer, [*messages, *answers]).labels[num_prompt_tokens:]
    return [label for label in labels if label != IGNORED]


def _messages(values: Mapping[str, Any], name: str, role: str) -> list[Message]:
    """A field that is messages, or the text of one of a role."""
    given = values.get(name)
    if not isinstance(given, list):
        given = [{"role": role, "content": checked_text(values, name)}]
    return checked_messages(given, json.dumps(name))
