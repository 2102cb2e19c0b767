"""Conversations as tokens, with the ones that the model itself is to write."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from griffinlm.evaluate.documents import DocumentError, RowRules, read_rows
from griffinlm.text import Tokenizer, TokenizerError
from griffinlm.train.data.token_file import IGNORED

ANSWERER = "assistant"
Message = Mapping[str, str]


@dataclass(frozen=True)
class RowFields:
    """Which fields of a JSON row say what."""

    messages: str = "messages"
    """A list of messages with `role` and `content`; other fields of a message are left out."""
    prompt: str | None = None
    """Instead of messages: what the user says."""
    answer: str | None = None
    """And what the model is to answer."""
    instruction: str = ""
    """Text in front of every prompt."""


class Example(NamedTuple):
    """A conversation as the model reads it."""

    tokens: list[int]
    labels: list[int]
    """The tokens themselves where the model writes, else IGNORED."""

    def cut_to(self, num_tokens: int) -> "Example":
        """Its first tokens."""
        return Example(self.tokens[:num_tokens], self.labels[:num_tokens])

    @property
    def teaches(self) -> bool:
        """Whether the model writes any of it."""
        return any(label != IGNORED for label in self.labels)


def read_conversations(
    path: Path, fields: RowFields, tokenizer: Tokenizer, rules: RowRules, most_tokens: int | None = None
) -> Iterator[tuple[str, Example]]:
    """The conversations of a `.jsonl` file (packed as .xz, .gz or .zst too), each with a digest of what is said in it.

    Args:
        most_tokens: as in `encode_conversation`.

    Raises:
        DocumentError: the file cannot be read, or a row is no conversation that the chat template takes.
    """

    def parse(values: Any) -> tuple[str, Example]:
        messages = _messages(values, fields)
        try:
            return _digest(messages), encode_conversation(tokenizer, messages, most_tokens)
        except TokenizerError as error:
            raise DocumentError(str(error), error.hint) from error

    return read_rows(path, parse, rules)


def encode_conversation(tokenizer: Tokenizer, messages: Sequence[Message], most_tokens: int | None = None) -> Example:
    """Tokens of the whole conversation, and as labels those of the assistant's turns.

    A turn goes from behind the prompt that asks for it up to its end token: exactly what the model writes when it is
    asked with the conversation so far. What the template puts behind the end token is not learned.

    Args:
        most_tokens: no turn is looked for behind so many tokens. Every turn is found by cutting all before it into
            tokens, so that a long conversation would take the square of its length.

    Raises:
        TokenizerError: the template takes no such messages, or writes a turn's prompt otherwise in a longer
            conversation, so that it cannot be found.
    """
    tokens = tokenizer.encode_chat(messages, add_generation_prompt=False)
    labels = [IGNORED] * len(tokens)
    for index, message in enumerate(messages):
        if message["role"] != ANSWERER:
            continue
        prompt = tokenizer.encode_chat(messages[:index])
        if most_tokens is not None and len(prompt) >= most_tokens:
            break
        whole = tokens if index + 1 == len(messages) else tokenizer.encode_chat(messages[: index + 1], False)
        if tokens[: len(prompt)] != prompt or tokens[: len(whole)] != whole or len(whole) < len(prompt):
            raise TokenizerError(
                f"messages[{index}] cannot be told apart: the chat template writes what stands before it otherwise "
                "when the conversation goes on"
            )
        ends = [place for place in range(len(prompt), len(whole)) if whole[place] in tokenizer.end_ids]
        stop = ends[-1] + 1 if ends else len(whole)
        labels[len(prompt) : stop] = tokens[len(prompt) : stop]
    return Example(tokens, labels)


def _messages(values: Any, fields: RowFields) -> list[Message]:
    if not isinstance(values, Mapping):
        raise DocumentError(f"the row is {_kind(values)}; it must be a table")
    if fields.prompt is not None and fields.answer is not None:
        user = fields.instruction + checked_text(values, fields.prompt)
        return [_message("user", user), _message(ANSWERER, checked_text(values, fields.answer))]
    name = json.dumps(fields.messages)
    messages = checked_messages(values.get(fields.messages), name)
    answers = [(index, m["content"]) for index, m in enumerate(messages) if m["role"] == ANSWERER]
    if not answers:
        raise DocumentError(f"{name} has no text of the {ANSWERER}'s, so nothing can be learned from it")
    for index, content in answers:
        if not content.strip():
            raise DocumentError(f"{name}[{index}] is empty; the {ANSWERER} would learn to say nothing")
    return messages


def checked_messages(messages: Any, name: str) -> list[Message]:
    """Messages of a row, with role and content alone.

    Raises:
        DocumentError: it is no list of messages; the text names it `name`.
    """
    if not isinstance(messages, list) or not messages:
        raise DocumentError(f"{name} is {_kind(messages)}; it must be a list of messages")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise DocumentError(f"{name}[{index}] must be a table with role and content, both text")
        _require_characters(message["content"], f"{name}[{index}]")
    return [_message(message["role"], message["content"]) for message in messages]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def checked_text(values: Mapping[str, Any], name: str) -> str:
    """The text of a field that must not be blank; raises DocumentError where it is, or is no text."""
    text = values.get(name)
    if not isinstance(text, str) or not text.strip():
        raise DocumentError(f"{json.dumps(name)} is {_kind(text)}; it must be text")
    _require_characters(text, json.dumps(name))
    return text


def _require_characters(text: str, name: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DocumentError(f"{name} holds half a surrogate pair, which is no character") from None


def _kind(value: Any) -> str:
    if value is None:
        return "missing"
    return "empty" if isinstance(value, list | str) and not value else f"a {type(value).__name__}"


def _digest(messages: Sequence[Message]) -> str:
    """SHA-256 of the contents, by which conversations are held out."""
    return hashlib.sha256("\n".join(m["content"] for m in messages).encode("utf-8")).hexdigest()
