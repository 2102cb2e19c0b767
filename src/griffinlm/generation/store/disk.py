"""Records as files: each appears whole or not at all, under a name that is never used again."""

import contextlib
import os
import uuid
from pathlib import Path
from typing import Protocol

from griffinlm.state import flush_entry


class Records(Protocol):
    """Where records are kept. The index alone knows which of them count."""

    def write(self, content: bytes) -> str:
        """Keeps the bytes and gives the new name; on return they survive a crash where the place does."""
        ...

    def read(self, name: str) -> bytes | None:
        """None where there is no such record."""
        ...

    def remove(self, name: str) -> None: ...

    def set_aside(self, name: str) -> None:
        """Takes a damaged record out of the way, kept for whoever looks into it."""
        ...

    def remove_damaged(self) -> None:
        """Removes all that was set aside."""
        ...

    def names(self) -> list[str]:
        """Everything that stands there, half-written records too."""
        ...


class MemoryRecords:
    """Records of a store without a directory."""

    def __init__(self) -> None:
        self._contents: dict[str, bytes] = {}

    def write(self, content: bytes) -> str:
        name = uuid.uuid4().hex
        self._contents[name] = content
        return name

    def read(self, name: str) -> bytes | None:
        return self._contents.get(name)

    def remove(self, name: str) -> None:
        self._contents.pop(name, None)

    def set_aside(self, name: str) -> None:
        self.remove(name)

    def remove_damaged(self) -> None:
        pass

    def names(self) -> list[str]:
        return list(self._contents)


class DiskRecords:
    """Records as files `records/NAME`, damaged ones as `damaged/NAME`, for their owner alone."""

    def __init__(self, directory: Path) -> None:
        self._folder, self._damaged = directory / "records", directory / "damaged"
        for folder in (directory, self._folder, self._damaged):
            folder.mkdir(mode=0o700, parents=folder == directory, exist_ok=True)

    def write(self, content: bytes) -> str:
        name = uuid.uuid4().hex
        temporary = self._folder / f"{name}.partial"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._folder / name)
            flush_entry(self._folder)
        except BaseException:
            for path in (temporary, self._folder / name):
                with contextlib.suppress(OSError):
                    path.unlink()
            raise
        return name

    def read(self, name: str) -> bytes | None:
        try:
            return (self._folder / _plain(name)).read_bytes()
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self._folder / _plain(name)).unlink()

    def set_aside(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.replace(self._folder / _plain(name), self._damaged / name)
            flush_entry(self._damaged)

    def remove_damaged(self) -> None:
        for path in self._damaged.iterdir():
            path.unlink(missing_ok=True)

    def names(self) -> list[str]:
        return os.listdir(self._folder)


def _plain(name: str) -> str:
    """A name as read from the index, which may be damaged: no path leads out of the folder."""
    if not name or "/" in name or name.startswith("."):
        raise FileNotFoundError(name)
    return name
