"""The cache of the hot path: one buffer of bytes for all layers (docs/cache-layout.md).

Float16 by default; float32 and int8 on request. The kernels write it; what NumPy does here is slow
and plain: the twin the tests compare with, and what runs where no native row move is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import OptionError
from quickdraft.hotpath_attention import bands, kv_head_bytes
from quickdraft.kvcache.growing import GrowingCache, Slots
from quickdraft.kvcache.pages import Buffer, Pages
from quickdraft.types import ModelSpec

BLOCK = 16
"""Slots whose keys lie side by side; capacities are multiples."""

KV_TYPES: Mapping[str, int] = {"f32": 0, "f16": 1, "int8": 2}
"""Names of KV types, and their numbers in the kernels."""

_DTYPES: Mapping[str, type[np.generic]] = {"f32": np.float32, "f16": np.float16, "int8": np.int8}


@dataclass(frozen=True)
class _Layer:
    """Views of one layer. keys: [capacity / 16, kv_heads, head_dim, 16]; values: [capacity,
    kv_heads, head_dim]; scales: float32, int8 only, with bands instead of head_dim for keys and
    without head_dim for values."""

    keys: NDArray[Any]
    values: NDArray[Any]
    key_scales: NDArray[np.float32] | None = None
    value_scales: NDArray[np.float32] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        parts = (self.keys, self.values, self.key_scales, self.value_scales)
        return sum(part.nbytes for part in parts if part is not None)

    def copy_rows(self, other: _Layer, rows: int) -> None:
        """Take the first `rows` slots of a layer of another capacity."""
        blocks = -(-rows // BLOCK)
        self.keys[:blocks] = other.keys[:blocks]
        self.values[:rows] = other.values[:rows]
        if self.key_scales is not None and other.key_scales is not None:
            self.key_scales[:blocks] = other.key_scales[:blocks]
        if self.value_scales is not None and other.value_scales is not None:
            self.value_scales[:rows] = other.value_scales[:rows]


class BlockedCache(GrowingCache):
    """A KvCache in one flat, aligned buffer.

    kv_type: its name in KV_TYPES. buffer: uint8 [nbytes]; another one when `version` changes.
    """

    def __init__(
        self,
        spec: ModelSpec,
        kv_type: str = "f16",
        capacity: int = 256,
        move: Callable[[BlockedCache, Slots, Slots], None] | None = None,
    ) -> None:
        """move: copies slot source[i] to slot target[i] in every layer, in order, with
        target[i] <= source[i]; None takes `move_rows`.

        Raises:
            OptionError: no such type.
        """
        check_kv_type(kv_type)
        super().__init__(spec, capacity, BLOCK)
        self.kv_type = kv_type
        self._native_move = move
        self._pages = Pages(self._size(self._capacity))

    @property
    def buffer(self) -> Buffer:
        """Zeros at first: a block is read whole, and what was never written must not be NaN."""
        return self._pages.buffer

    def _size(self, capacity: int) -> int:
        return capacity * sum(self._spec.num_kv_heads) * self._head_bytes

    @property
    def _head_bytes(self) -> int:
        """Bytes of one slot of one KV head, key and value."""
        return kv_head_bytes(KV_TYPES[self.kv_type], self._spec.head_dim)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.buffer.nbytes

    @property
    def kv_heads(self) -> tuple[int, ...]:
        """KV heads of each layer."""
        return self._spec.num_kv_heads

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self._spec.head_dim

    def _layers(self, buffer: Buffer, capacity: int) -> list[_Layer]:
        """Views into a buffer of that many slots, one per layer."""
        dtype, width, at = _DTYPES[self.kv_type], self._spec.head_dim, 0

        def take(shape: tuple[int, ...], kind: type[np.generic]) -> NDArray[Any]:
            nonlocal at
            start, at = at, at + int(np.prod(shape)) * np.dtype(kind).itemsize
            return buffer[start:at].view(kind).reshape(shape)

        found = []
        scaled = self.kv_type == "int8"
        for heads in self._spec.num_kv_heads:
            blocks = capacity // BLOCK
            keys = take((blocks, heads, width, BLOCK), dtype)
            scales = (blocks, heads, len(bands(width)), BLOCK)
            key_scales = take(scales, np.float32) if scaled else None
            values = take((capacity, heads, width), dtype)
            value_scales = take((capacity, heads), np.float32) if scaled else None
            found.append(_Layer(keys, values, key_scales, value_scales))
        return found

    def _resize(self, capacity: int) -> None:
        """Layer by layer, so that what is held never exceeds the larger size by more than one."""
        pages, begin = Pages(self._size(capacity)), 0
        layers = self._layers(self.buffer, self._capacity)
        for mine, grown in zip(layers, self._layers(pages.buffer, capacity), strict=True):
            grown.copy_rows(mine, self._length + self._staged)
            end = begin + mine.nbytes
            self._pages.release(begin, end)
            begin = end
        self._pages = pages

    def _move(self, source: Slots, target: Slots) -> None:
        (self._native_move or move_rows)(self, source, target)

    def fork(self) -> BlockedCache:
        """An independent copy of the committed rows."""
        twin = BlockedCache(self._spec, self.kv_type, self._capacity, self._native_move)
        twin._length, twin._predicted = self._length, self._predicted
        twin.memory = self.memory
        # What is staged may reach beyond the capacity that a cache begins with.
        theirs = self._layers(twin.buffer, twin.capacity)
        for mine, copy in zip(self._layers(self.buffer, self._capacity), theirs, strict=True):
            copy.copy_rows(mine, self._length)
        return twin

    def layer(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Keys and values of one layer, float32 [capacity, kv_heads, head_dim]: a decoded copy,
        for tests and for those who look."""
        layer = self._layers(self.buffer, self._capacity)[index]
        keys, values = layer.keys.astype(np.float32), layer.values.astype(np.float32)
        if layer.key_scales is not None and layer.value_scales is not None:
            for band, columns in enumerate(bands(self._spec.head_dim)):
                keys[:, :, columns] *= layer.key_scales[:, :, band, None]
            values *= layer.value_scales[..., None]
        return np.moveaxis(keys, 3, 1).reshape(values.shape), values

    def rows(self) -> list[NDArray[Any]]:
        """What the committed rows hold, as it is stored, [length, ...]: equal if and only if two
        caches agree to the last bit. A copy."""
        found = []
        for layer in self._layers(self.buffer, self._capacity):
            stored = [np.moveaxis(layer.keys, 3, 1), layer.values]
            if layer.key_scales is not None and layer.value_scales is not None:
                stored += [np.moveaxis(layer.key_scales, 3, 1), layer.value_scales]
            found += [a.reshape(self._capacity, *a.shape[-2:])[: self._length] for a in stored[:2]]
            found += [a.reshape(self._capacity, -1)[: self._length] for a in stored[2:]]
        return found

    def write(self, index: int, slots: Sequence[int], keys: Any, values: Any) -> None:
        """Store float32 [n, kv_heads, head_dim] rows in slots of one layer, rounded to the type."""
        layer = self._layers(self.buffer, self._capacity)[index]
        at = np.asarray(slots, np.int64)
        block, lane = at // BLOCK, at % BLOCK
        if layer.key_scales is not None and layer.value_scales is not None:
            codes = np.empty(np.shape(keys), np.int8)
            for band, columns in enumerate(bands(self._spec.head_dim)):
                codes[..., columns], scales = _quantise(keys[..., columns])
                layer.key_scales[block, :, band, lane] = scales
            keys = codes
            values, layer.value_scales[at] = _quantise(values)
        layer.keys[block, :, :, lane] = keys
        layer.values[at] = values


def move_rows(cache: BlockedCache, source: Slots, target: Slots) -> None:
    """Copy slot source[i] to slot target[i] in every layer; both rise, target[i] <= source[i]."""
    block, lane = source // BLOCK, source % BLOCK
    to_block, to_lane = target // BLOCK, target % BLOCK
    for layer in cache._layers(cache.buffer, cache.capacity):
        layer.keys[to_block, :, :, to_lane] = layer.keys[block, :, :, lane]
        layer.values[target] = layer.values[source]
        if layer.key_scales is not None and layer.value_scales is not None:
            layer.key_scales[to_block, :, :, to_lane] = layer.key_scales[block, :, :, lane]
            layer.value_scales[target] = layer.value_scales[source]


def _quantise(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 codes [..., width] and float32 scales [...]: the largest magnitude becomes 127."""
    scale = (np.abs(x).max(axis=-1) / np.float32(127)).astype(np.float32)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    return np.rint(x * inverse[..., None]).astype(np.int8), scale


def check_kv_type(kv_type: str) -> None:
    """Refuse the name of a KV type that does not exist.

    Raises:
        OptionError: it is none of KV_TYPES.
    """
    if kv_type not in KV_TYPES:
        raise OptionError(
            f"kv_cache is {kv_type!r}; it must be one of {', '.join(sorted(KV_TYPES))}"
        )
