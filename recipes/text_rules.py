"""Plain rules over English text, the same ones for making requests and for checking answers to them."""

import re
from collections.abc import Sequence

_SENTENCE = re.compile(r"\S.*?(?:[.!?…]+[\"\u201d\u2019')]*(?=\s|$)|$)", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")


def sentences(text: str) -> list[str]:
    """A text cut behind `.`, `!`, `?` and the closing marks after them, where white space or the end follows."""
    return _SENTENCE.findall(text)


def words(text: str) -> list[str]:
    """Words in small letters, a typewriter's apostrophe inside."""
    return [word.lower().replace("\u2019", "'") for word in _WORD.findall(text)]


def normalised(text: str) -> str:
    """Words and numbers in small letters, single spaces between, without an article in front."""
    plain = " ".join(re.findall(r"[^\W_]+", text.lower()))
    return re.sub(r"^(?:a|an|the) ", "", plain)


def stands_in(part: str, text: str) -> bool:
    """Whether a text holds a part, word for word, whatever marks and capitals either has."""
    needle = normalised(part)
    return bool(needle) and f" {needle} " in f" {normalised(text)} "


def missing_words(asked: Sequence[str], text: str) -> list[str]:
    """The asked words that a text does not use, in just that form."""
    used = set(words(text))
    return [word for word in asked if word.lower() not in used]
