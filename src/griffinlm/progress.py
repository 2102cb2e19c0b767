"""Progress on standard error, where that is a terminal; silence where it is not."""

import sys
from collections.abc import Collection, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """The items, with a bar that disappears at the end."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    if total is None and isinstance(items, Collection):
        total = len(items)
    yield from track(items, description, total, console=Console(stderr=True), transient=True)
