"""A directory that appears complete or not at all."""

import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from griffinlm.checkpoint.errors import CheckpointError, describe
from griffinlm.state import flush_entry

try:
    import fcntl
except ModuleNotFoundError:  # Windows, which has no locks on directories
    fcntl = None

ABANDONED_AFTER_SECONDS = 60
"""A younger directory may belong to a process that has not locked it yet."""


@contextmanager
def new_directory(destination: Path) -> Iterator[Path]:
    """Gives a temporary directory beside `destination`; at the end flushes it to the disk and renames it.

    On an error the temporary directory is removed. A killed process leaves it, under a name that starts with a dot and
    ends with .partial, and nothing at the destination; the next writer to the same destination removes it.

    Raises:
        CheckpointError: the destination exists and is not empty, or the system refuses to write.
    """
    try:
        require_free(destination)
        # The absolute path, so that a destination such as `.` or `a/..` has a name and a parent.
        final = Path(os.path.abspath(destination))
        final.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(final.parent, re.escape(final.name))
        partial = final.parent / f".{final.name}.{uuid.uuid4().hex}.partial"
        partial.mkdir()
        with _lock(partial, wait=True):
            try:
                yield partial
                _open_to_readers(partial)
                _flush(partial)
                if final.is_dir():
                    final.rmdir()
                partial.rename(final)
                flush_entry(final.parent)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except OSError as error:
        raise CheckpointError(f"cannot write {destination}: {describe(error)}") from error


def require_free(destination: Path) -> None:
    """Refuses a destination that is there already; an empty directory may be.

    Raises:
        CheckpointError: it exists and is not empty, or cannot be looked at.
    """
    try:
        is_free = not destination.exists() or (destination.is_dir() and not any(destination.iterdir()))
    except OSError as error:
        raise CheckpointError(f"cannot write {destination}: {describe(error)}") from error
    if not is_free:
        raise CheckpointError(f"{destination} exists already", hint="give a new name, or remove it first")


def remove_abandoned(parent: Path, names: str) -> None:
    """Removes what killed writers to destinations in `parent` left whose names match the pattern `names`.

    The system unlocks what a process held when it ends.
    """
    if fcntl is None:
        return
    name = re.compile(rf"\.{names}\.[0-9a-f]{{32}}\.partial")
    for path in parent.iterdir():
        if name.fullmatch(path.name):
            with contextlib.suppress(OSError), _lock(path, wait=False) as is_held:
                if is_held and path.stat().st_mtime < time.time() - ABANDONED_AFTER_SECONDS:
                    shutil.rmtree(path)


@contextmanager
def _lock(directory: Path, wait: bool) -> Iterator[bool]:
    """Locks a directory against other processes; gives whether it did, which some file systems cannot."""
    if fcntl is None:
        yield False
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = True
        except OSError:
            is_held = False
        yield is_held
    finally:
        os.close(descriptor)


def _open_to_readers(directory: Path) -> None:
    """Gives every file the mode that new files have here; safetensors makes its own readable by the owner alone."""
    mode = directory.stat().st_mode & 0o666
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _flush(directory: Path) -> None:
    for path in directory.rglob("*"):
        flush_entry(path)
    flush_entry(directory)
