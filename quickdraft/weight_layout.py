"""The layout of hot-path weights: where the bytes of a record are, and what they mean.

`docs/weight-layout.md` describes it in words. Written to be read: the proof of what is packed
(`quickdraft.export.packing`) and of what the kernels compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

BLOCK = 16
"""Outputs of a record."""
OUTER_GROUP = 256
"""Columns that share the outer factor of a scale in two levels."""
_ALIGNMENT = 64


@dataclass(frozen=True)
class Layout:
    """A format. dense: the type of its values, or None for codes.

    bits: of a code. group: columns that share a scale. zero: the code of value 0. inner: the type
    of the integers of a scale in two levels, None where scales are float16.
    """

    dense: str | None = None
    bits: int = 0
    group: int = 1
    zero: int = 0
    has_minimum: bool = False
    inner: str | None = None

    @property
    def codes(self) -> int:
        """Codes are below this; kernels multiply those of 8 bits with a minimum as if of 6."""
        return 64 if self.bits == 8 and self.has_minimum else 1 << self.bits

    @property
    def divisor(self) -> int:
        """What the number of columns must be a multiple of."""
        return self.group if self.inner is None else OUTER_GROUP


LAYOUTS: Mapping[str, Layout] = {
    "f32": Layout(dense="<f4"),
    "f16": Layout(dense="<f2"),
    "w4": Layout(bits=4, group=32, zero=8),
    "w4m": Layout(bits=4, group=32, has_minimum=True),
    "w4k": Layout(bits=4, group=32, has_minimum=True, inner="u1"),
    "w6k": Layout(bits=6, group=16, zero=32, inner="i1"),
    "w8": Layout(bits=8, group=32, zero=128),
    "w8m": Layout(bits=8, group=32, has_minimum=True),
    "w8k": Layout(bits=8, group=32, has_minimum=True, inner="u1"),
}
"""Every format by its name."""


def record_bytes(name: str, columns: int) -> int:
    """Bytes of a record (16 outputs) of the format `name`.

    Raises:
        ValueError: the number of columns does not suit the format.
    """
    used = sum(np.dtype(kind).itemsize * size for _, kind, size in _sections(name, columns))
    return -(-used // _ALIGNMENT) * _ALIGNMENT


def sections(data: Bytes, name: str, columns: int) -> dict[str, NDArray[Any]]:
    """The parts of records, as views of `data` [blocks, record].

    `values`: [blocks, columns, 16]. `codes`: uint8 [blocks, groups, bytes]. `scale`, `minimum`:
    [blocks, groups, 16], float16 or integers; with integers also `outer` and `outer_minimum`:
    float16 [blocks, columns / 256, 16].
    """
    parts, start = {}, 0
    for part, kind, size in _sections(name, columns):
        end = start + size * np.dtype(kind).itemsize
        inner = LAYOUTS[name].bits * LAYOUTS[name].group * BLOCK // 8 if part == "codes" else BLOCK
        parts[part] = data[:, start:end].view(kind).reshape(len(data), -1, inner)
        start = end
    return parts


def _sections(name: str, columns: int) -> list[tuple[str, str, int]]:
    """Name, type and number of values of each part of a record, in order."""
    layout = LAYOUTS[name]
    if columns < 1 or columns % layout.divisor:
        raise ValueError(
            f"{columns} columns do not suit {name}: not a multiple of {layout.divisor}"
        )
    if layout.dense is not None:
        return [("values", layout.dense, columns * BLOCK)]
    groups, outer = columns // layout.group * BLOCK, columns // OUTER_GROUP * BLOCK
    parts = [("codes", "u1", columns * BLOCK * layout.bits // 8)]
    parts.append(("scale", layout.inner or "<f2", groups))
    if layout.has_minimum:
        parts.append(("minimum", layout.inner or "<f2", groups))
    if layout.inner is not None:
        parts.append(("outer", "<f2", outer))
        if layout.has_minimum:
            parts.append(("outer_minimum", "<f2", outer))
    return parts


def unpack(data: Bytes, name: str, outputs: int, columns: int) -> Floats:
    """The values of a packed matrix: uint8 [blocks, record] to float32 [outputs, columns].

    Each is rounded as in the kernels: scale times code in float32, then the minimum.
    """
    layout, parts = LAYOUTS[name], sections(data, name, columns)
    if layout.dense is not None:
        return _rows(parts["values"].astype(np.float32))[:outputs]
    codes = _rows(unpack_codes(parts["codes"], layout.bits))[:outputs]
    groups = codes.reshape(outputs, -1, layout.group).astype(np.float32)
    scale = _scales(parts, "scale", "outer")[:outputs]
    values = (groups - np.float32(layout.zero)) * scale[:, :, None]
    if layout.has_minimum:
        sign = np.float32(1 if layout.inner is None else -1)
        values += sign * _scales(parts, "minimum", "outer_minimum")[:outputs, :, None]
    return values.reshape(outputs, columns)


def unpack_codes(packed: Bytes, bits: int) -> Bytes:
    """Codes [blocks, groups, bytes] of 4, 6 or 8 bits to one byte each, [blocks, columns, 16]."""
    blocks = len(packed)
    quads: NDArray[Any]  # of uint8: NumPy's types widen what the values do not
    if bits == 8:
        quads = packed.reshape(blocks, -1, BLOCK, 4)
    elif bits == 4:
        pairs = packed.reshape(blocks, -1, 1, BLOCK, 4)
        quads = np.concatenate([pairs & 15, pairs >> 4], axis=2)
    else:
        low = packed[..., :128].reshape(blocks, -1, 1, BLOCK, 4)
        low = np.concatenate([low & 15, low >> 4], axis=2).reshape(blocks, -1, 4, BLOCK, 4)
        high = packed[..., 128:].reshape(blocks, -1, 1, BLOCK, 4)
        quads = low | (high >> np.array([0, 2, 4, 6], np.uint8)[:, None, None] & 3) << 4
    codes: Bytes = np.swapaxes(quads.reshape(blocks, -1, BLOCK, 4), 2, 3).reshape(blocks, -1, BLOCK)
    return codes


def _scales(parts: Mapping[str, NDArray[Any]], inner: str, outer: str) -> Floats:
    """Scales or minimums, both levels multiplied, [16 * blocks, groups]."""
    values = _rows(parts[inner].astype(np.float32))
    if outer in parts:
        factors = _rows(parts[outer].astype(np.float32))
        values = values * np.repeat(factors, values.shape[1] // factors.shape[1], axis=1)
    return values


def _rows(values: NDArray[Any]) -> NDArray[Any]:
    """[blocks, items, 16] to [16 * blocks, items]."""
    return np.ascontiguousarray(np.swapaxes(values, 1, 2)).reshape(-1, values.shape[1])
