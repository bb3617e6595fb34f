"""Hidden states of rows that a refresh computed, until drafters are told of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

States = Mapping[int, NDArray[np.float32]]
"""float32 [rows, hidden] by number of layers passed."""


class ToldStates:
    """Rows from a number on, in order, as far as they are known.

    One thread at a time. Rows before the first that was added are not known.
    """

    def __init__(self) -> None:
        self._chunks: list[tuple[int, States]] = []

    def add(self, start: int, states: States, layers: Sequence[int]) -> None:
        """Keep copies of what a step gave for these layers, of rows from `start` on; what was kept
        of rows from there on is forgotten."""
        self.truncate(start)
        if self.end != start:
            self._chunks = []
        self._chunks.append((start, {layer: states[layer].copy() for layer in layers}))

    def truncate(self, length: int) -> None:
        """Forget the rows from number `length` on."""
        kept: list[tuple[int, States]] = []
        for start, states in self._chunks:
            if start < length:
                kept.append((start, {k: rows[: length - start] for k, rows in states.items()}))
        self._chunks = kept

    @property
    def end(self) -> int:
        """One more than the number of the last row; -1 where there is none."""
        if not self._chunks:
            return -1
        start, states = self._chunks[-1]
        return start + max((len(rows) for rows in states.values()), default=0)

    def take(self, length: int) -> tuple[int, States] | None:
        """The rows known of the last ones below `length`, with the number of the first; they are
        forgotten. None where row `length` - 1 is not known."""
        self.truncate(length)
        chunks, end = self._chunks, self.end
        self._chunks = []
        if end != length or not chunks:
            return None
        joined = {k: np.concatenate([s[k] for _, s in chunks]) for k in chunks[0][1]}
        return chunks[0][0], joined
