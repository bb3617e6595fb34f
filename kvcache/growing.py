"""What all caches share that grow by doubling: counting rows, bounds, the check of a path."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import ContextOverflow
from quickdraft.kvcache.memory import Memory
from quickdraft.types import ModelSpec

Slots = NDArray[np.int64]


class GrowingCache(ABC):
    """A KvCache less its memory, which a subclass holds.

    version: raised whenever its buffers are others than before. memory: that of the source which
    the rows attend to, in an encoder-decoder model; forks share it.
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
        self.memory: Memory | None = None

    def _aligned(self, rows: int) -> int:
        return -(-rows // self._alignment) * self._alignment

    @property
    def length(self) -> int:
        """Committed rows."""
        return self._length

    @property
    def staged(self) -> int:
        """Rows written and not yet committed."""
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
        self._make_room(0, rows)

    def extend(self, rows: int) -> None:
        """Make room for `rows` slots after what is staged, and call them staged too.

        Branches that grow side by side take more slots than there are positions.
        """
        self._make_room(self._staged, rows)

    def _make_room(self, kept: int, rows: int) -> None:
        needed = self._length + kept + rows
        if not kept and needed > self._limit:
            raise ContextOverflow(needed, self._spec.context_length, "step")
        if needed > self._capacity:
            capacity = min(2 * self._capacity, self._limit)
            capacity = max(self._aligned(needed), capacity)
            self._resize(capacity)
            self._capacity = capacity
            self.version += 1
        self._staged = kept + rows

    def commit(self, path: Sequence[int]) -> None:
        """Keep the staged rows of `path`, in order, and drop the others."""
        self.keep(path, len(path))

    def keep(self, rows: Sequence[int], committed: int) -> None:
        """Commit the first of the staged `rows`, leave the others of them staged, drop the rest."""
        kept = list(rows)
        start = self._length
        if any(a >= b for a, b in pairwise([-1, *kept, self._staged])):
            raise ValueError(f"path {kept} does not rise within {self._staged} staged rows")
        if not 0 <= committed <= len(kept):
            raise ValueError(f"cannot commit {committed} of {len(kept)} rows")
        first = next((i for i, row in enumerate(kept) if row != i), len(kept))
        if first < len(kept):
            # Rows rise, so none lands on one that is still to be moved.
            source = start + np.asarray(kept[first:], np.int64)
            self._move(source, np.arange(start + first, start + len(kept)))
        self._length = start + committed
        self._staged = len(kept) - committed

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
        """Take memory of `capacity` slots and copy committed and staged rows into it. Where memory
        is short this raises, and nothing has changed."""

    @abstractmethod
    def _move(self, source: Slots, target: Slots) -> None:
        """Copy slot source[i] to slot target[i] in every layer; both rise, target <= source."""
