"""How many threads a call of the graph runs on."""

import os
from pathlib import Path

from griffinlm.edge.control_group import group_folders, read_lines, read_number

CPUS = Path("/sys/devices/system/cpu")


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
    return "".join(read_lines(CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list")).strip()


def _group_cores() -> int | None:
    """Whole cores that the quotas of the control groups allow; None without one."""
    shares = []
    for group in group_folders("cpu"):
        quota, period = read_number(group / "cpu.cfs_quota_us"), read_number(group / "cpu.cfs_period_us")
        parts = " ".join(read_lines(group / "cpu.max")).split()
        if len(parts) == 2 and all(map(str.isdigit, parts)):
            quota, period = map(int, parts)
        if quota is not None and period:
            shares.append(quota // period)
    return max(1, min(shares)) if shares else None
