"""Memory of caches that can be given back piece by piece, while a larger cache takes its rows over.

A cache grows by copying; with both copies whole it would take twice its size for a moment, which
is the largest the process ever gets at a long context.
"""

from __future__ import annotations

import mmap
import sys

import numpy as np
from numpy.typing import NDArray

Buffer = NDArray[np.uint8]

ALIGNMENT = 64
"""Of every buffer, bytes."""

MAPPED_FROM = 32 << 20
"""Bytes from which a buffer has pages of its own: giving back takes a call a layer."""

_RELEASE: int | None = getattr(mmap, "MADV_DONTNEED", None)  # not on Windows


class Pages:
    """A buffer of zeros. buffer: uint8 [size]; memory is taken as it is written."""

    def __init__(self, size: int) -> None:
        self._mapping: mmap.mmap | None = None
        if size >= MAPPED_FROM:
            self._mapping = _anonymous(size)
            self.buffer: Buffer = np.frombuffer(self._mapping, np.uint8)
            return
        memory = np.zeros(size + ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        self.buffer = memory[start : start + size]

    def release(self, begin: int, end: int) -> None:
        """Give the whole pages between two offsets back, where the system can; what they held is
        lost."""
        if self._mapping is None or _RELEASE is None:
            return
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        length = end // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0:
            self._mapping.madvise(_RELEASE, first, length)


def _anonymous(size: int) -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    # Python's default is shared, and pages of a shared mapping stay when they are released.
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
