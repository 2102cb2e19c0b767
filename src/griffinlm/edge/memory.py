"""How much memory this process may still take, asked before it is taken."""

import os
from pathlib import Path

from griffinlm.errors import GriffinError


class NotEnoughMemoryError(GriffinError):
    """Something would not fit into memory; the message has the numbers."""


def available_bytes() -> int | None:
    """What the system, the control group and the process limit leave to this process; None where nobody tells."""
    found = [bound for bound in (_system_bytes(), _group_bytes(), _limit_bytes()) if bound is not None]
    return min(found) if found else None


def require_memory(num_bytes: int, what: str, hint: str | None = None) -> None:
    """Refuses before anything is allocated.

    Raises:
        NotEnoughMemoryError: `num_bytes` are more than `available_bytes`.
    """
    available = available_bytes()
    if available is not None and num_bytes > available:
        raise NotEnoughMemoryError(
            f"{what} needs {num_bytes / 1e6:,.0f} MB of memory; {available / 1e6:,.0f} MB are available", hint
        )


def _system_bytes() -> int | None:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _group_bytes() -> int | None:
    """Of the innermost control group (version 2) with a limit; file pages that it can drop count as free."""
    places = [line.split("::", 1)[1].strip() for line in _lines(Path("/proc/self/cgroup")) if line.startswith("0::")]
    found = []
    for place in places:
        folder = Path("/sys/fs/cgroup") / place.lstrip("/")
        for group in (folder, *folder.parents):
            limit, used = _lines(group / "memory.max"), _lines(group / "memory.current")
            if limit and used and limit[0].strip().isdigit():
                cached = [
                    line.split()[1] for line in _lines(group / "memory.stat") if line.startswith("inactive_file ")
                ]
                found.append(int(limit[0]) - int(used[0]) + sum(map(int, cached)))
    return max(0, min(found)) if found else None


def _limit_bytes() -> int | None:
    """Of the address space (`ulimit -v`)."""
    try:
        import resource  # not on every system
    except ModuleNotFoundError:
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    pages = _lines(Path("/proc/self/statm"))
    if limit == resource.RLIM_INFINITY or not pages:
        return None
    return max(0, limit - int(pages[0].split()[0]) * os.sysconf("SC_PAGE_SIZE"))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
