"""The cache contract.

A step writes the keys and values of its n rows into slots length .. length+n-1: they are *staged*.
`commit(path)` keeps the staged rows named by `path`, in that order, and drops the others. A tree
may also grow over several steps: `keep` leaves rows staged, and `extend` makes room after them.
The laws, property-tested for every implementation:

* append then truncate = never appended;
* commit(path) = having decoded the tokens of that path plainly;
* keep(rows, len(rows)) = commit(rows), and rows that stay staged are those that were;
* nbytes = bytes held;
* predicted rows, always the first ones, stay marked until they are forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@runtime_checkable
class KvCache(Protocol):
    """Keys and values of one conversation."""

    @property
    def length(self) -> int:
        """Committed rows."""

    @property
    def staged(self) -> int:
        """Rows written and not yet committed."""

    @property
    def predicted(self) -> int:
        """How many of the first committed rows are predicted, and not what the target computes."""

    @property
    def capacity(self) -> int:
        """Slots held; a multiple of the slot alignment of the layout."""

    @property
    def nbytes(self) -> int:
        """Bytes held by all buffers."""

    def stage(self, rows: int) -> None:
        """Drop what is staged, make room for `rows` slots after `length`, call them staged.

        Raises:
            ContextOverflow: more slots than the model can hold.
        """

    def extend(self, rows: int) -> None:
        """Make room for `rows` slots after what is staged, and call them staged too. They may be
        more than the model has positions: branches share positions."""

    def keep(self, rows: Sequence[int], committed: int) -> None:
        """Commit the first `committed` of the staged `rows` (increasing indices from 0), leave the
        others of them staged, in order, and drop the rest."""

    def commit(self, path: Sequence[int]) -> None:
        """Keep the staged rows of `path` (increasing indices from 0), drop the others."""

    def mark_predicted(self) -> None:
        """Call all committed rows predicted.

        Raises:
            ValueError: rows are staged.
        """

    def truncate(self, length: int) -> None:
        """Forget committed rows from `length` on, and everything staged."""

    def fork(self) -> KvCache:
        """An independent copy of the committed rows."""

    def layer(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Keys and values of one layer, [capacity, kv_heads, head_dim]: the memory itself where it
        is float32 and lies slot by slot, otherwise a decoded copy."""
