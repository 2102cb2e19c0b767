"""How many threads a call of the graph runs on."""

import os
from pathlib import Path

CPUS, GROUPS = Path("/sys/devices/system/cpu"), Path("/sys/fs/cgroup")


def num_threads(threads: int | None = None) -> int:
    """`threads` where said; else one for every core that this process may use, within the control group's share.

    Two threads of one core share its arithmetic and wait for the same memory, so the second one gains nothing.
    """
    if threads is not None:
        return threads
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_siblings(cpu) or str(cpu) for cpu in allowed}
    share = _group_cores()
    return max(1, len(cores) if share is None else min(len(cores), share))


def _siblings(cpu: int) -> str:
    """The threads of the core that a processor number belongs to, as the system names them."""
    return _read(CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list")


def _group_cores() -> int | None:
    """Whole cores that the quota of the control group (version 2) allows; None without one."""
    place = next((line[3:] for line in _read(Path("/proc/self/cgroup")).splitlines() if line.startswith("0::")), None)
    if place is None:
        return None
    folder = GROUPS / place.lstrip("/")
    shares = []
    for group in (folder, *folder.parents):
        parts = _read(group / "cpu.max").split()
        if len(parts) == 2 and parts[0].isdigit() and int(parts[1]) > 0:
            shares.append(int(parts[0]) // int(parts[1]))
    return max(1, min(shares)) if shares else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
