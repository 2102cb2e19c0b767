"""Conversation: turns with a model that reads every message once."""

import os
from collections.abc import Generator
from typing import Unpack

from griffinlm.conversation.file import KIND, from_bytes, to_bytes
from griffinlm.conversation.turns import ConversationError, Message, Place, Places, Turn
from griffinlm.errors import GriffinError
from griffinlm.generation.answering import GenerationOptions, Options
from griffinlm.generation.completion import Generation
from griffinlm.language_model import LanguageModel
from griffinlm.state import NOTHING_PENDING, State, read_whole, write_whole

KEPT_BYTES = 1 << 30
"""Memory for the states of earlier turns, if nothing else is said."""


class Conversation:
    """Messages between a user and a model, as a tree of turns: going back and saying something else grows a branch.

    What the model answers is defined by the chat template applied to all messages up to the present turn. The state at
    the end of every turn is kept, so that going to a turn restores it, and what is said next is all that is read. A
    state is used where its tokens are a prefix of what the template gives, else that of an earlier turn: a model need
    not write its words as the tokenizer would cut them, and then its answer is read once more. A model with global
    attention, whose state has no fixed size, reads everything anew.

    Args:
        kept_bytes: budget of the states kept. Beyond it those used longest ago are given up; a turn without its state
            is read again from the nearest one above it.
        options: those of `LanguageModel.generate`; penalties count the tokens read in the present turn.

    Raises:
        GriffinError: an option is unknown or out of its range.
    """

    def __init__(self, model: LanguageModel, *, kept_bytes: int = KEPT_BYTES, **options: Unpack[Options]) -> None:
        GenerationOptions.of(options)
        self.turns = [Turn(0, None, [])]
        """All turns in the order in which they were taken; a turn's number is its place here."""
        self.current = self.turns[0]
        """The turn behind which the next one goes."""
        self.latest: Generation | None = None
        """The last answer with its reason to end; None before the first, and after one that was cut short."""
        self._model, self._options = model, options
        self._places = Places(kept_bytes)

    @property
    def messages(self) -> list[Message]:
        """What has been said up to the present turn, as `role` and `content`."""
        return [message for turn in self.current.path for message in turn.messages]

    @property
    def state(self) -> State | None:
        """What the model remembers at the present turn; None at the beginning and where it would be read again."""
        place = self._places.get(self.current)
        return None if place is None else place.state

    @property
    def num_tokens(self) -> int:
        """Tokens of the messages as the template writes them."""
        return len(self._model.tokenizer.encode_chat(self.messages, False)) if self.messages else 0

    @property
    def num_kept(self) -> int:
        """Turns whose state is kept."""
        return len(self._places)

    @property
    def kept_bytes(self) -> int:
        """Memory of what is kept."""
        return self._places.nbytes

    def say(self, text: str) -> Generator[str]:
        """Takes a turn: pieces of the answer as they are written.

        An answer whose iterator is closed early, or interrupted, is kept as far as it came.

        Raises:
            GriffinError: the model has no tokenizer or no chat template, or that refuses the messages; the conversation
                is then as before.
        """
        question = {"role": "user", "content": text}
        ids = self._model.tokenizer.encode_chat([*self.messages, question])
        self.latest = None
        return self._answer(self.current, question, ids, self._read(ids[:-1]))

    def go_to(self, number: int) -> Turn:
        """Moves to the end of a turn, from where the conversation then goes on; no turn is lost.

        Raises:
            ConversationError: there is no such turn.
        """
        if not 0 <= number < len(self.turns):
            raise ConversationError(f"there is no turn {number}; turns are 0 to {len(self.turns) - 1}")
        self.current, self.latest = self.turns[number], None
        return self.current

    def rewind(self, num_turns: int = 1) -> Turn:
        """Moves back from the present turn, to that many above it.

        Raises:
            ConversationError: there are not so many.
        """
        num_before = len(self.current.path) - 1
        if not 1 <= num_turns <= num_before:
            raise ConversationError(f"{num_turns} turns cannot be taken back; there are {num_before} up to here")
        return self.go_to(self.current.path[-1 - num_turns].number)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes all turns and the state at the present one to a file, whole or not at all; only its owner can read it.

        Raises:
            StateError: the file cannot be written; nothing is left behind.
        """
        place = self._places.get(self.current)
        write_whole(path, to_bytes(self._model, self.turns, self.current, place), KIND)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: LanguageModel,
        *,
        kept_bytes: int = KEPT_BYTES,
        **options: Unpack[Options],
    ) -> "Conversation":
        """The conversation that `save` wrote with the same model; the states of other turns are read again when needed.

        Raises:
            GriffinError: there is no such file, it is damaged, no conversation, or belongs to another model; or an
                option is unknown or out of its range.
        """
        conversation = cls(model, kept_bytes=kept_bytes, **options)
        content = read_whole(path, KIND)
        conversation.turns, conversation.current, place = from_bytes(content, model, str(path))
        if place is not None:
            conversation._places.put(conversation.current, place)
        return conversation

    def _read(self, ids: list[int]) -> Place:
        """The place at the end of `ids`, reached from the last one that lies on the way."""
        place = self._places.nearest(self.current, ids) or Place([], None)
        unread = ids[len(place.token_ids) :]
        if unread and not self._model.config.needs_capacity:
            place = Place(ids, self._model.read(unread, place.state))
        return place

    def _answer(self, parent: Turn, question: Message, ids: list[int], before: Place) -> Generator[str]:
        pieces: list[str] = []
        after = before
        try:
            stream = self._model.stream(ids[len(before.token_ids) :], state=before.state, **self._options)
            for piece in stream:
                pieces.append(piece)
                yield piece
            self.latest = stream.generation
            # The template, not the sampled token, says what stands behind an answer.
            state = self.latest.state.with_pending([NOTHING_PENDING])
            after = Place(ids + self.latest.token_ids[:-1], state)
        except GriffinError:
            raise
        except BaseException:
            self._append(parent, question, pieces, before, before)
            raise
        self._append(parent, question, pieces, before, after)

    def _append(self, parent: Turn, question: Message, pieces: list[str], before: Place, after: Place) -> None:
        turn = Turn(len(self.turns), parent, [question, {"role": "assistant", "content": "".join(pieces)}])
        parent.children.append(turn)
        self.turns.append(turn)
        self.current = turn
        if not self._model.config.needs_capacity:
            rendered = self._model.tokenizer.encode_chat(self.messages, False)
            self._places.put(turn, after if after.is_on_the_way_to(rendered) else before)
