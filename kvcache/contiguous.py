"""One growing buffer per layer, slot-major: [capacity, kv_heads, head_dim].

Slot-major keeps a row contiguous: any prefix of the buffer is itself a valid tensor (so a step
sees exactly the slots it needs), truncation is a number, and committing a tree path moves rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quickdraft.kvcache.growing import GrowingCache, Slots
from quickdraft.types import ModelSpec

SLOT_ALIGNMENT = 64
"""Steps see a multiple of this many slots: sums over slots then always split the same way."""

_Layer = tuple[NDArray[np.float32], NDArray[np.float32]]


def align_slots(rows: int) -> int:
    """The smallest multiple of the alignment that holds `rows`."""
    return -(-rows // SLOT_ALIGNMENT) * SLOT_ALIGNMENT


class ContiguousCache(GrowingCache):
    """A KvCache in NumPy memory, float32."""

    def __init__(self, spec: ModelSpec, capacity: int = 256) -> None:
        super().__init__(spec, capacity, SLOT_ALIGNMENT)
        self._layers = self._buffers(self._capacity)

    def _buffers(self, slots: int) -> list[_Layer]:
        shapes = [(slots, heads, self._spec.head_dim) for heads in self._spec.num_kv_heads]
        return [(np.zeros(shape, np.float32), np.zeros(shape, np.float32)) for shape in shapes]

    @property
    def nbytes(self) -> int:
        """Bytes held by all buffers."""
        return sum(key.nbytes + value.nbytes for key, value in self._layers)

    def _resize(self, capacity: int) -> None:
        grown = self._buffers(capacity)
        self._copy_to(grown, self._length + self._staged)
        self._layers = grown

    def _copy_to(self, layers: list[_Layer], rows: int) -> None:
        for (key, value), (k, v) in zip(self._layers, layers, strict=True):
            k[:rows] = key[:rows]
            v[:rows] = value[:rows]

    def _move(self, source: Slots, target: Slots) -> None:
        for key, value in self._layers:
            key[target] = key[source]
            value[target] = value[source]

    def fork(self) -> ContiguousCache:
        """An independent copy of the committed rows."""
        twin = ContiguousCache(self._spec, self._capacity)
        twin._length, twin._predicted = self._length, self._predicted
        twin.memory = self.memory
        # What is staged may reach beyond the capacity that a cache begins with.
        self._copy_to(twin._layers, self._length)
        return twin

    def layer(self, index: int) -> _Layer:
        """Key and value buffers of one layer, not copied."""
        return self._layers[index]
