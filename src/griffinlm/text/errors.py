"""The error of the room."""

from griffinlm.errors import GriffinError


class TokenizerError(GriffinError):
    """A tokenizer that cannot be read, or text, ids or messages that it cannot take."""
