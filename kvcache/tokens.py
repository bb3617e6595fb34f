"""What a model without a cache is given again at every step: its tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quickdraft.kvcache.growing import GrowingCache, Slots
from quickdraft.types import ModelSpec

ALIGNMENT = 64


class TokenCache(GrowingCache):
    """The cache of a model that keeps nothing: the tokens themselves, int64 [capacity]."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec, 256, ALIGNMENT)
        self.tokens = np.zeros(self._capacity, np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.tokens.nbytes

    def _resize(self, capacity: int) -> None:
        grown = np.zeros(capacity, np.int64)
        rows = self._length + self._staged
        grown[:rows] = self.tokens[:rows]
        self.tokens = grown

    def _move(self, source: Slots, target: Slots) -> None:
        self.tokens[target] = self.tokens[source]

    def fork(self) -> TokenCache:
        """An independent copy of the committed rows."""
        twin = TokenCache(self._spec)
        twin._capacity, twin.tokens = self._capacity, self.tokens.copy()
        twin._length, twin._predicted = self._length, self._predicted
        return twin

    def layer(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Nothing, [capacity, 0, head_dim]: there are no keys and values."""
        empty = np.zeros((self._capacity, 0, self._spec.head_dim), np.float32)
        return empty, empty
