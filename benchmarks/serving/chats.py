"""What the clients say: chats of several kinds, drawn from a seed, of the same sizes for every server."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

QUESTION = "question"


@dataclass(frozen=True)
class Kind:
    """A way in which people use a server."""

    name: str
    num_words: int
    """Of a message, on average."""
    num_tokens: int
    """The most of an answer, on average."""
    num_turns: int = 1
    is_by_id: bool = False
    """Later turns name the response before them, where the server keeps responses; else all is sent again."""


QUESTIONS = Kind(QUESTION, 24, 32)
DOCUMENTS = Kind("document", 1500, 24)
RESENT = Kind("history sent again", 60, 32, num_turns=3)
BY_ID = Kind("history by id", 60, 32, num_turns=3, is_by_id=True)
MIX = (QUESTIONS, DOCUMENTS, QUESTIONS, RESENT, QUESTIONS, BY_ID)
"""In turn."""
SPREAD = 0.5
"""Sizes are even between 1 - SPREAD and 1 + SPREAD of the average."""

STORY = (
    "the a hawk owl griffin river forest hill night morning and flies sings sees under over old small quiet red"
    " was is asked why where tree stone wind boat child king door light song far home never always again"
)
"""Words for a model that knows them."""


@dataclass(frozen=True)
class Chat:
    """One conversation from its side of the user."""

    kind: Kind
    messages: tuple[str, ...]
    max_tokens: tuple[int, ...]
    """Of the answer to each."""
    seed: int


def draw_chats(num_chats: int, words: Sequence[str], separator: str, seed: int, share: float = 1.0) -> list[Chat]:
    """Chats of all kinds in turn; their sizes depend on the seed alone, not on the words.

    Args:
        share: all sizes are this part of what they would be.
    """
    sizes, texts = random.Random(seed), random.Random(seed)

    def size(average: int) -> int:
        return max(1, round(share * average * sizes.uniform(1 - SPREAD, 1 + SPREAD)))

    chats = []
    for number in range(num_chats):
        kind = MIX[number % len(MIX)]
        lengths = [(size(kind.num_words), size(kind.num_tokens)) for _ in range(kind.num_turns)]
        messages = tuple(separator.join(texts.choices(words, k=length)) for length, _ in lengths)
        chats.append(Chat(kind, messages, tuple(length for _, length in lengths), seed=number))
    return chats


def first_chat(chats: Sequence[Chat]) -> Chat:
    """One of them again, in other words: said before anything is timed."""
    return replace(chats[0], messages=tuple(message[::-1] for message in chats[0].messages))
