"""The error of every damaged, foreign or unwritable checkpoint."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from griffinlm.errors import GriffinError

NUM_FAULTS_SHOWN = 3
NUM_CHARACTERS_QUOTED = 300


class CheckpointError(GriffinError):
    """A checkpoint that cannot be read or written; `faults` lists everything found, where it can be several."""

    def __init__(self, message: str, hint: str | None = None, faults: Sequence[str] = ()) -> None:
        # Names out of a damaged file may hold anything, line breaks and terminal controls included.
        super().__init__(_printable_line(message), hint)
        self.faults = [_printable_line(fault) for fault in faults]


def faults_error(path: Path | str, faults: Sequence[str]) -> CheckpointError:
    """One line with the number of faults and the first few of them; all of them in `.faults`."""
    shown = "; ".join(faults[:NUM_FAULTS_SHOWN])
    num_hidden = len(faults) - NUM_FAULTS_SHOWN
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return CheckpointError(
        f"{path} has {count}: {shown}" + (f"; and {num_hidden} more" if num_hidden > 0 else ""), faults=faults
    )


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turns whatever a reader of `path` raises into a CheckpointError.

    The libraries that parse a damaged file raise errors of many types, so every Exception is caught here.
    """
    try:
        yield
    except GriffinError:
        raise
    except Exception as error:
        raise CheckpointError(f"cannot read {path}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """The first line of what an exception says; for one of the operating system its own words, without the path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first_line = (str(error).strip().splitlines() or [""])[0][:NUM_CHARACTERS_QUOTED]
    # A lone word, such as the key of a KeyError, says nothing without the type.
    return first_line if " " in first_line else f"{type(error).__name__} {first_line}".strip()


def _printable_line(text: str) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
