"""Measures how many bytes a second the processor reads from memory.

Run as `python -m peers.bandwidth THREADS BYTES`; needs numpy. Prints one JSON object.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

REPEATS = 9


def read_bandwidth(threads: int, num_bytes: int) -> float:
    """Bytes a second: the best of several passes in which every thread reads a part of its own once."""
    parts = np.array_split(np.zeros(num_bytes // 8, np.int64), threads)
    for part in parts:
        part += 1  # memory that was never written is one shared page of zeros
    with ThreadPoolExecutor(threads) as pool:

        def seconds() -> float:
            start = time.perf_counter()
            list(pool.map(np.maximum.reduce, parts))
            return time.perf_counter() - start

        return num_bytes / min(seconds() for _ in range(REPEATS))


if __name__ == "__main__":
    print(json.dumps({"read_bytes_per_second": round(read_bandwidth(int(sys.argv[1]), int(sys.argv[2])))}))
