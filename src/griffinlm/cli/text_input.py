"""Text that a user hands over: UTF-8 in every locale."""

import sys
from collections.abc import Iterator

from griffinlm.errors import GriffinError


class InputError(GriffinError):
    """Input that is no text."""


def require_text(argument: str) -> str:
    """The argument itself.

    Raises:
        InputError: it came from bytes that are not UTF-8.
    """
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"the prompt is not UTF-8 at character {error.start}") from None
    return argument


def read_text() -> str:
    """All of standard input, line ends as they are.

    Raises:
        InputError: it is not UTF-8; the message names the byte.
    """
    return _decode(sys.stdin.buffer.read(), "standard input")


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
        raise InputError(
            f"{name} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}",
            hint="convert it first, for example with iconv -t utf-8",
        ) from None
