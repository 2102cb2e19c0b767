"""How many bytes a second the processor reads from memory: the bound of a step that reads every weight once."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from griffinlm.edge.memory import available_bytes
from griffinlm.evaluate.own_process import in_own_process

LARGEST_ARRAY_BYTES = 1 << 30
NUM_PASSES = 9


def read_bandwidth(threads: int, num_bytes: int | None = None) -> float:
    """Bytes a second that `threads` threads read together, the best of several passes over a large array.

    Runs in a process of its own, whose memory is given back at once.

    Args:
        num_bytes: size of the array; None is 1 GiB, or a quarter of the available memory where that is less.
    """
    if num_bytes is None:
        available = available_bytes()
        num_bytes = LARGEST_ARRAY_BYTES if available is None else min(LARGEST_ARRAY_BYTES, available // 4)
    return in_own_process(_measure, threads, num_bytes)


def _measure(threads: int, num_bytes: int) -> float:
    """The largest element is found with one load and one comparison a vector, so that only memory limits it."""
    # Memory that was never written is one shared page of zeros.
    array = np.ones(max(threads, num_bytes // 4), np.float32)
    parts = np.array_split(array, threads)
    with ThreadPoolExecutor(threads) as pool:

        def seconds() -> float:
            start = time.perf_counter()
            list(pool.map(np.maximum.reduce, parts))
            return time.perf_counter() - start

        return array.nbytes / min(seconds() for _ in range(NUM_PASSES))
