"""Work that must not count as this process's memory, and how much memory this process has taken."""

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import ParamSpec, TypeVar

from griffinlm.errors import GriffinError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class OwnProcessError(GriffinError):
    """A process that was started for a piece of work did not live to its end."""


def in_own_process(
    function: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs
) -> Result:
    """`function(*arguments, **named)`, computed in a new process; what it raises is raised here.

    Raises:
        OwnProcessError: the process was killed.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments, **named).result()
        except BrokenProcessPool as error:
            raise OwnProcessError(
                f"the process of {function.__name__} was killed", hint="there may be too little memory"
            ) from error


def peak_resident_bytes() -> int:
    """The largest resident set that this process has had.

    `ru_maxrss` also counts what the process was before it ran this program, so that it is asked last.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        import resource  # not on every system

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
