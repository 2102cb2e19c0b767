"""A directory that appears complete or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from griffinlm.checkpoint.errors import CheckpointError, describe


@contextmanager
def new_directory(destination: Path) -> Iterator[Path]:
    """Gives a temporary directory beside `destination`; at the end flushes it to the disk and renames it.

    On an error the temporary directory is removed. A killed process leaves it, under a name that starts with a dot and
    ends with .partial, and nothing at the destination.

    Raises:
        CheckpointError: the destination exists and is not empty, or the system refuses to write.
    """
    try:
        if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
            raise CheckpointError(f"{destination} exists already", hint="give a new name, or remove it first")
        # The absolute path, so that a destination such as `.` or `a/..` has a name and a parent.
        final = Path(os.path.abspath(destination))
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = final.parent / f".{final.name}.{uuid.uuid4().hex}.partial"
        partial.mkdir()
        try:
            yield partial
            _open_to_readers(partial)
            _flush(partial)
            if final.is_dir():
                final.rmdir()
            partial.rename(final)
            _flush_entry(final.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise CheckpointError(f"cannot write {destination}: {describe(error)}") from error


def _open_to_readers(directory: Path) -> None:
    """Gives every file the mode that new files have here; safetensors makes its own readable by the owner alone."""
    mode = directory.stat().st_mode & 0o666
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _flush(directory: Path) -> None:
    for path in directory.rglob("*"):
        _flush_entry(path)
    _flush_entry(directory)


def _flush_entry(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no directories.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
