"""Text that a user hands over: UTF-8 in every locale."""

import codecs
import sys
from collections.abc import Callable, Iterator

from griffinlm.errors import GriffinError

PIECE_BYTES = 1 << 16
INVALID = {"refuse": "strict", "replace": "replace"}


class InputError(GriffinError):
    """Input that is no text."""


def require_text(argument: str, name: str = "the prompt") -> str:
    """The argument itself.

    Raises:
        InputError: it came from bytes that are not UTF-8; the message begins with `name`.
    """
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is not UTF-8 at character {error.start}") from None
    return argument


def read_texts(read: Callable[[int], bytes], invalid: str | None = None) -> Iterator[str]:
    """UTF-8 as text without end, line ends as they are, in parts of at most 64 KiB; no character is torn.

    Args:
        read: gives up to that many bytes, none at the end.
        invalid: "refuse", or "replace" for U+FFFD in the place of what is no UTF-8; None refuses.

    Raises:
        InputError: it is not UTF-8; the message names the byte. Or `invalid` is none of the two.
    """
    if invalid is not None and invalid not in INVALID:
        raise InputError(f"--invalid-utf8 is {invalid}; allowed are {', '.join(INVALID)}")
    decoder = codecs.getincrementaldecoder("utf-8")(INVALID[invalid or "refuse"])
    num_decoded, is_over = 0, False
    while not is_over:
        data = read(PIECE_BYTES)
        is_over = not data
        waiting = decoder.getstate()[0]
        try:
            text = decoder.decode(data, final=is_over)
        except UnicodeDecodeError as error:
            raise _not_utf8(error, "standard input", num_decoded - len(waiting)) from None
        num_decoded += len(data)
        if text:
            yield text


def read_lines() -> Iterator[str]:
    """The lines of standard input without their ends, each as soon as it is there.

    Raises:
        InputError: a line is not UTF-8; the message names line and byte.
    """
    for number, line in enumerate(sys.stdin.buffer, 1):
        yield _decode(line, f"line {number} of standard input").rstrip("\r\n")


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(error, name) from None


def _not_utf8(error: UnicodeDecodeError, name: str, num_before: int = 0) -> InputError:
    return InputError(
        f"{name} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {num_before + error.start}",
        hint="convert it first, for example with iconv -t utf-8",
    )
