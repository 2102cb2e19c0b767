"""Ids to text one at a time."""

import codecs
from collections.abc import Callable


class TextStream:
    """Streaming decode: the pieces joined are exactly `decode` of all ids.

    A token may end inside a UTF-8 character; its bytes wait for the next token. What waits is at most three bytes, so
    an endless stream needs constant memory and constant work a token.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        """Decode with the bytes that `token_bytes` gives for an id."""
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The characters that are whole with this token; may be empty.

        Raises:
            TokenizerError: no token has that id.
        """
        return self._decoder.decode(self._token_bytes(token_id))

    def finish(self) -> str:
        """What still waits: U+FFFD for a character that stayed broken, else nothing. The stream is then as new."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
