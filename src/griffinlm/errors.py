"""The error of all that a user can cause, and how it shows what was found. Other exceptions are faults of ours."""

from collections.abc import Mapping

MAX_CHARACTERS, MAX_BITS = 60, 200
MAX_MESSAGE_CHARACTERS = 200


class GriffinError(ValueError):
    """One line that names the thing, the value found and what is allowed; `hint` says in one line what to do next."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


def in_one_line(fault: BaseException | str) -> str:
    """What a library says of a fault, without line breaks, cut where it grows long."""
    line = " ".join(str(fault).split()) or type(fault).__name__
    return line if len(line) <= MAX_MESSAGE_CHARACTERS else line[: MAX_MESSAGE_CHARACTERS - 3] + "..."


def shown(value: object) -> str:
    """`value` for a message: short and on one line."""
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        return f"an integer of {value.bit_length():,} bits"
    text = repr(value) if isinstance(value, str | int | float | list | tuple | None) else f"a {type(value).__name__}"
    return text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 4]}...{text[-1]}"
