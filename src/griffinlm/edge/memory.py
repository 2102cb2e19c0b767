"""How much memory this process may still take, asked before it is taken."""

import os
from pathlib import Path
from typing import NamedTuple

from griffinlm.edge.control_group import group_folders, read_lines, read_number
from griffinlm.errors import GriffinError

ARENA_BYTES = 64 << 20
"""Of addresses, that the allocator of the C library reserves for a thread."""
DEFAULT_STACK_BYTES = 8 << 20


class GroupFiles(NamedTuple):
    """What a version of control groups calls its files."""

    limit: str
    used: str
    cached: tuple[str, str]
    """Pages of files, in lines of `memory.stat` that are about the group and those below it."""
    mapped: str
    """Those of them that a process has mapped, such as its libraries."""


GROUP_FILES = (
    GroupFiles("memory.max", "memory.current", ("inactive_file", "active_file"), "file_mapped"),
    GroupFiles(
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
        "total_mapped_file",
    ),
)
"""Of version 2 and of version 1."""


class NotEnoughMemoryError(GriffinError):
    """Something would not fit into memory; the message has the numbers."""


def available_bytes() -> int | None:
    """What the system, the control group and the process limit leave to this process; None where nobody tells."""
    found = [bound for bound in (_system_bytes(), _group_bytes(), _address_bytes()) if bound is not None]
    return min(found) if found else None


def require_memory(num_bytes: int, what: str) -> None:
    """Refuses before anything is allocated.

    Raises:
        NotEnoughMemoryError: `num_bytes` are more than `available_bytes`.
    """
    available = available_bytes()
    if available is not None and num_bytes > available:
        raise NotEnoughMemoryError(
            f"{what} needs {num_bytes / 1e6:,.0f} MB of memory; {available / 1e6:,.0f} MB are available"
        )


def require_address_space(num_bytes: int, num_threads: int, what: str) -> None:
    """Refuses what does not fit under `ulimit -v`: memory, and what every further thread reserves for itself.

    ONNX Runtime waits forever for a thread that cannot be made, so it must not come to that.

    Raises:
        NotEnoughMemoryError: they are more than the limit leaves.
    """
    left = _address_bytes()
    wanted = num_bytes + (num_threads - 1) * (_stack_bytes() + ARENA_BYTES)
    if left is not None and wanted > left:
        raise NotEnoughMemoryError(
            f"{what} needs {wanted / 1e6:,.0f} MB of address space (threads: {num_threads}); ulimit -v leaves"
            f" {left / 1e6:,.0f} MB",
            hint="fewer threads reserve less; a control group limits memory itself",
        )


def _system_bytes() -> int | None:
    for line in read_lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _group_bytes() -> int | None:
    """Of the tightest control group; pages of files that nobody has mapped count as free, since it can drop them."""
    found = []
    for group in group_folders("memory"):
        for files in GROUP_FILES:
            limit, used = read_number(group / files.limit), read_number(group / files.used)
            if limit is not None and used is not None:
                lines = [line.split() for line in read_lines(group / "memory.stat")]
                pages = {line[0]: int(line[1]) for line in lines if len(line) == 2}
                cached = sum(pages.get(name, 0) for name in files.cached) - pages.get(files.mapped, 0)
                found.append(limit - used + max(0, cached))
    return max(0, min(found)) if found else None


def _address_bytes() -> int | None:
    """Of the address space (`ulimit -v`)."""
    limit, pages = _process_limit("RLIMIT_AS"), read_lines(Path("/proc/self/statm"))
    if limit is None or not pages:
        return None
    return max(0, limit - int(pages[0].split()[0]) * os.sysconf("SC_PAGE_SIZE"))


def _stack_bytes() -> int:
    return _process_limit("RLIMIT_STACK") or DEFAULT_STACK_BYTES


def _process_limit(name: str) -> int | None:
    try:
        import resource  # not on every system
    except ModuleNotFoundError:
        return None
    limit = resource.getrlimit(getattr(resource, name))[0]
    return None if limit == resource.RLIM_INFINITY else limit
