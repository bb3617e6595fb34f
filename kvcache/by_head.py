"""One buffer per layer, head by head: [kv_heads, capacity, head_dim].

A head's rows lie together, as matrix products read them. A graph that reads the whole buffer, and
writes none of it, is given the rows of a step back with `put`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.kvcache.growing import GrowingCache, Slots
from quickdraft.types import ModelSpec

SLOT_ALIGNMENT = 64
_BYTES = 64
"""Where buffers begin: engines copy what is aligned less well before they read it."""

_Layer = tuple[NDArray[np.float32], NDArray[np.float32]]


class ByHeadCache(GrowingCache):
    """A KvCache in NumPy memory, float32."""

    def __init__(self, spec: ModelSpec, capacity: int = 256, fixed: bool = False) -> None:
        """capacity: slots to begin with. fixed: and to end with; then it may pass the context."""
        super().__init__(spec, capacity, SLOT_ALIGNMENT)
        if fixed:
            self._capacity = self._limit = self._aligned(capacity)
        self._layers = self._buffers(self._capacity)

    def _buffers(self, slots: int) -> list[_Layer]:
        shapes = [(heads, slots, self._spec.head_dim) for heads in self._spec.num_kv_heads]
        return [(aligned_zeros(shape), aligned_zeros(shape)) for shape in shapes]

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
            k[:, :rows] = key[:, :rows]
            v[:, :rows] = value[:, :rows]

    def _move(self, source: Slots, target: Slots) -> None:
        for key, value in self._layers:
            key[:, target] = key[:, source]
            value[:, target] = value[:, source]

    def fork(self) -> ByHeadCache:
        """An independent copy of the committed rows."""
        fixed = self._capacity == self._limit
        twin = ByHeadCache(self._spec, self._capacity, fixed)
        twin._length, twin._predicted = self._length, self._predicted
        twin.memory = self.memory
        # What is staged may reach beyond the capacity that a cache begins with.
        self._copy_to(twin._layers, self._length)
        return twin

    def put(
        self, layer: int, start: int, keys: NDArray[np.float32], values: NDArray[np.float32]
    ) -> None:
        """Write rows [kv_heads, n, head_dim] into slots from `start` on."""
        end = start + keys.shape[1]
        key, value = self._layers[layer]
        key[:, start:end] = keys
        value[:, start:end] = values

    def by_head(self, index: int) -> _Layer:
        """Key and value buffers of one layer, [kv_heads, capacity, head_dim], not copied."""
        return self._layers[index]

    def layer(self, index: int) -> _Layer:
        """Keys and values of one layer, [capacity, kv_heads, head_dim]: a copy."""
        key, value = self._layers[index]
        return key.transpose(1, 0, 2).copy(), value.transpose(1, 0, 2).copy()


@dataclass(frozen=True, eq=False)
class ByHeadMemory:
    """A Memory of which every layer has keys and values [kv_heads, slots, head_dim], float32 or
    float16.

    filled: rows of the source; what lies in slots behind them is not to be seen. The arrays are not
    marked as read-only, as engines refuse to read such memory in place; `layer` copies.
    """

    layers: tuple[tuple[NDArray[Any], NDArray[Any]], ...]
    filled: int

    @property
    def rows(self) -> int:
        """Rows of the memory."""
        return self.filled

    @property
    def slots(self) -> int:
        """Rows that its tensors have."""
        return int(self.layers[0][0].shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(key.nbytes + value.nbytes for key, value in self.layers)

    def layer(self, index: int) -> _Layer:
        """Keys and values of one layer, [rows, kv_heads, head_dim]: a copy."""
        key, value = (each[:, : self.filled].transpose(1, 0, 2) for each in self.layers[index])
        return key.astype(np.float32, order="C"), value.astype(np.float32, order="C")


def aligned_zeros(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Zeros: slots that were never written are multiplied by zero, and must not be NaN."""
    size = int(np.prod(shape)) * 4
    memory = np.zeros(size + _BYTES, np.uint8)
    start = -memory.ctypes.data % _BYTES
    return memory[start : start + size].view(np.float32).reshape(shape)
