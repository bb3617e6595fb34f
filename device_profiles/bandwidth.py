"""How fast can this machine read memory? The limit of every step that reads all weights."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

BYTES = 512 << 20
"""More than any cache holds."""


def read_bandwidth(threads: int, repeats: int = 6, size: int = BYTES) -> float:
    """Sequential read bandwidth in GB/s (1e9 bytes): the best of several passes over `size` bytes.

    A pass is the maximum of int32 numbers, a part per thread. Of NumPy's reductions it does the
    least per byte: sums of float64 reached only half of it.
    """
    data = np.ones(size // 4, np.int32)
    parts = np.array_split(data, threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            started = time.perf_counter()
            for _ in pool.map(np.max, parts):
                pass
            best = max(best, data.nbytes / (time.perf_counter() - started) / 1e9)
    return best
