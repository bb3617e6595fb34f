"""One growing buffer per layer, slot-major: [capacity, kv_heads, head_dim].

Slot-major keeps a row contiguous: any prefix of the buffer is itself a valid tensor (so a step
sees exactly the slots it needs), truncation is a number, and committing a tree path moves rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import ContextOverflow
from quickdraft.types import ModelSpec

SLOT_ALIGNMENT = 64
"""Steps see a multiple of this many slots: sums over slots then always split the same way."""


def align_slots(rows: int) -> int:
    """The smallest multiple of the alignment that holds `rows`."""
    return -(-rows // SLOT_ALIGNMENT) * SLOT_ALIGNMENT


class ContiguousCache:
    """A KvCache in NumPy memory that doubles when it must grow."""

    def __init__(self, spec: ModelSpec, capacity: int = 256) -> None:
        self._spec = spec
        self._limit = align_slots(spec.context_length)
        self._capacity = min(align_slots(max(capacity, 1)), self._limit)
        self._length = 0
        self._staged = 0
        self.version = 0
        self._layers = self._buffers(self._capacity)

    def _buffers(self, slots: int) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        shapes = [(slots, heads, self._spec.head_dim) for heads in self._spec.num_kv_heads]
        return [(np.zeros(shape, np.float32), np.zeros(shape, np.float32)) for shape in shapes]

    @property
    def length(self) -> int:
        """Committed rows."""
        return self._length

    @property
    def staged(self) -> int:
        """Rows written by the last step and not yet committed."""
        return self._staged

    @property
    def capacity(self) -> int:
        """Slots held."""
        return self._capacity

    @property
    def nbytes(self) -> int:
        """Bytes held by all buffers."""
        return sum(key.nbytes + value.nbytes for key, value in self._layers)

    def stage(self, rows: int) -> None:
        """Make room for `rows` slots after the committed ones.

        Positions may not pass the context limit; the nodes of a tree share positions, so slots
        (rounded up) are what is bounded here and the engine bounds positions.
        """
        needed = self._length + rows
        if needed > self._limit:
            raise ContextOverflow(needed, self._spec.context_length, "step")
        if needed > self._capacity:
            self._grow(needed)
        self._staged = rows

    def _grow(self, needed: int) -> None:
        capacity = min(max(align_slots(needed), 2 * self._capacity), self._limit)
        grown = self._buffers(capacity)  # where memory is short, this fails and nothing changed
        for (key, value), (k, v) in zip(self._layers, grown, strict=True):
            k[: self._length] = key[: self._length]
            v[: self._length] = value[: self._length]
        self._capacity, self._layers = capacity, grown
        self.version += 1

    def commit(self, path: Sequence[int]) -> None:
        """Keep the staged rows of `path`, in order, and drop the others."""
        kept = list(path)
        start = self._length
        if any(a >= b for a, b in pairwise([-1, *kept, self._staged])):
            raise ValueError(f"path {kept} does not rise within {self._staged} staged rows")
        first = next((i for i, row in enumerate(kept) if row != i), len(kept))
        if first < len(kept):
            # Rows rise, so none lands on one that is still to be moved.
            source = start + np.asarray(kept[first:], np.int64)
            target = slice(start + first, start + len(kept))
            for key, value in self._layers:
                key[target] = key[source]
                value[target] = value[source]
        self._length = start + len(kept)
        self._staged = 0

    def truncate(self, length: int) -> None:
        """Forget committed rows from `length` on, and everything staged."""
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot truncate {self._length} rows to {length}")
        self._length = length
        self._staged = 0

    def fork(self) -> ContiguousCache:
        """An independent copy of the committed rows."""
        twin = ContiguousCache(self._spec, self._capacity)
        twin._length = self._length
        for (key, value), (k, v) in zip(self._layers, twin._layers, strict=True):
            k[: self._length] = key[: self._length]
            v[: self._length] = value[: self._length]
        return twin

    def layer(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Key and value buffers of one layer, not copied."""
        return self._layers[index]
