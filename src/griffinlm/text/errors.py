"""The error of the room, and the one way in which a foreign message enters it."""

from griffinlm.errors import GriffinError

_MAX_MESSAGE_CHARACTERS = 200


class TokenizerError(GriffinError):
    """A tokenizer that cannot be read, or text, ids or messages that it cannot take."""


def in_one_line(fault: BaseException | str) -> str:
    """The message of a library's exception without line breaks, cut where it grows long."""
    line = " ".join(str(fault).split()) or type(fault).__name__
    return line if len(line) <= _MAX_MESSAGE_CHARACTERS else line[: _MAX_MESSAGE_CHARACTERS - 3] + "..."
