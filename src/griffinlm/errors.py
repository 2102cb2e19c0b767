"""The error of all that a user can cause, and how it shows what was found. Other exceptions are faults of ours."""

from collections.abc import Mapping

MOST_CHARACTERS, MOST_BITS = 60, 200


class GriffinError(ValueError):
    """One line that names the thing, the value found and what is allowed; `hint` says in one line what to do next."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


def shown(value: object) -> str:
    """`value` for a message: short and on one line."""
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        return f"an integer of {value.bit_length():,} bits"
    text = repr(value) if isinstance(value, str | int | float | list | tuple | None) else f"a {type(value).__name__}"
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 4]}...{text[-1]}"
