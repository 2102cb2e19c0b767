"""Conversation: turns with a model that reads every message once."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Unpack

from griffinlm.generation.answering import GenerationOptions, Options
from griffinlm.generation.completion import Generation
from griffinlm.language_model import LanguageModel
from griffinlm.state import NOTHING_PENDING, State


@dataclass(frozen=True)
class _Place:
    """A point to go on from: the ids read, and what the model remembers of them."""

    ids: list[int]
    state: State | None


_BEGINNING = _Place([], None)


class Conversation:
    """Messages between a user and a model.

    What the model answers is defined by the chat template applied to all messages. A state of what has been read is
    used where its ids are a prefix of that. A model need not write its words as the tokenizer would cut them; then its
    last answer is read once more. A model with global attention, whose state has no fixed size, reads everything anew.

    Args:
        options: those of `LanguageModel.generate`; penalties count the tokens read in the present turn.

    Raises:
        GriffinError: an option is unknown or out of its range.
    """

    def __init__(self, model: LanguageModel, **options: Unpack[Options]) -> None:
        GenerationOptions.of(options)
        self.messages: list[dict[str, str]] = []
        """What has been said, as `role` and `content`."""
        self.latest: Generation | None = None
        """The last answer with its reason to end; None before the first, and after one that was cut short."""
        self._model, self._options = model, options
        self._before_answer = self._after_answer = _BEGINNING

    def say(self, text: str) -> Generator[str]:
        """Takes a turn: pieces of the answer as they are written.

        An answer whose iterator is closed early, or interrupted, is kept as far as it came.

        Raises:
            GriffinError: the model has no tokenizer or no chat template, or that refuses the messages; the conversation
                is then as before.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = self._model.tokenizer.encode_chat(messages)
        self.latest = None
        self._read(ids[:-1])
        return self._answer(messages, ids)

    def _read(self, ids: list[int]) -> None:
        """Moves the place before the answer to the end of `ids`, from the furthest place that lies on the way."""
        known = [self._after_answer, self._before_answer, _BEGINNING]
        start = next(place for place in known if ids[: len(place.ids)] == place.ids)
        unread = ids[len(start.ids) :]
        if unread and not self._model.config.needs_capacity:
            start = _Place(ids, self._model.read(unread, start.state))
        self._before_answer = self._after_answer = start

    def _answer(self, messages: list[dict[str, str]], ids: list[int]) -> Generator[str]:
        pieces: list[str] = []
        place = self._before_answer
        try:
            stream = self._model.stream(ids[len(place.ids) :], state=place.state, **self._options)
            for piece in stream:
                pieces.append(piece)
                yield piece
            self.latest = generation = stream.generation
            if not self._model.config.needs_capacity:
                # The template, not the sampled token, says what stands behind an answer.
                state = generation.state.with_pending([NOTHING_PENDING])
                self._after_answer = _Place(ids + generation.token_ids[:-1], state)
        finally:
            self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]
