"""What all caches share that grow by doubling: counting rows, bounds, the check of a path."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import ContextOverflow
from quickdraft.types import ModelSpec

Slots = NDArray[np.int64]


class GrowingCache(ABC):
    """A KvCache less its memory, which a subclass holds.

    version: raised whenever the memory is another one than before.
    """

    def __init__(self, spec: ModelSpec, capacity: int, alignment: int) -> None:
        """capacity: slots to begin with, rounded up to the alignment, at most the context."""
        self._spec = spec
        self._alignment = alignment
        self._limit = self._aligned(spec.context_length)
        self._capacity = min(self._aligned(max(capacity, 1)), self._limit)
        self._length = 0
        self._staged = 0
        self._predicted = 0
        self.version = 0

    def _aligned(self, rows: int) -> int:
        return -(-rows // self._alignment) * self._alignment

    @property
    def length(self) -> int:
        """Committed rows."""
        return self._length

    @property
    def staged(self) -> int:
        """Rows written by the last step and not yet committed."""
        return self._staged

    @property
    def predicted(self) -> int:
        """How many of the first committed rows are predicted."""
        return self._predicted

    @property
    def capacity(self) -> int:
        """Slots held."""
        return self._capacity

    def stage(self, rows: int) -> None:
        """Make room for `rows` slots after the committed ones.

        Positions may not pass the context limit; the nodes of a tree share positions, so slots
        (rounded up) are what is bounded here and the engine bounds positions.
        """
        needed = self._length + rows
        if needed > self._capacity:
            if needed > self._limit:
                raise ContextOverflow(needed, self._spec.context_length, "step")
            capacity = min(max(self._aligned(needed), 2 * self._capacity), self._limit)
            self._resize(capacity)
            self._capacity = capacity
            self.version += 1
        self._staged = rows

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
            self._move(source, np.arange(start + first, start + len(kept)))
        self._length = start + len(kept)
        self._staged = 0

    def truncate(self, length: int) -> None:
        """Forget committed rows from `length` on, and everything staged."""
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot truncate {self._length} rows to {length}")
        self._length = length
        self._staged = 0
        self._predicted = min(self._predicted, length)

    def mark_predicted(self) -> None:
        """Call all committed rows predicted."""
        if self._staged:
            raise ValueError(f"{self._staged} rows are staged")
        self._predicted = self._length

    @abstractmethod
    def _resize(self, capacity: int) -> None:
        """Take memory of `capacity` slots and copy the committed rows into it. Where memory is
        short this raises, and nothing has changed."""

    @abstractmethod
    def _move(self, source: Slots, target: Slots) -> None:
        """Copy slot source[i] to slot target[i] in every layer; both rise, target <= source."""
