"""Matrices in the layout of the kernels (docs/weight-layout.md), without requantising.

Codes keep their values and only move; a quad, four codes of a row, moves as one 32-bit word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.export.weights import Blocked, Dense, Floats
from quickdraft.weight_layout import BLOCK, LAYOUTS, Bytes, Layout, record_bytes, sections

_CHUNK_VALUES = 1 << 21
"""Values packed at a time, so that what is worked on stays in the processor's cache."""


@dataclass(frozen=True)
class Packed:
    """A matrix for the kernels. data: uint8 [blocks, record]. n: outputs, k: columns."""

    format: str
    n: int
    k: int
    data: Bytes


def kernel_format(data: Dense | Blocked) -> str:
    """The format that holds the values of `data` exactly, `f32` where no other does."""
    if isinstance(data, Dense):
        return "f16" if data.values.dtype == np.float16 else "f32"
    for name, layout in LAYOUTS.items():
        if layout.dense is None and _suits(data, layout):
            return name
    return "f32"


def _suits(data: Blocked, layout: Layout) -> bool:
    form = (data.group, data.minimum is not None, data.levels is not None)
    if form != (layout.group, layout.has_minimum, layout.inner is not None):
        return False
    if data.codes.shape[1] % layout.divisor:
        return False
    if layout.inner is None and not (_is_half(data.scale) and _is_half(data.minimum)):
        return False
    # Codes of 8 bits without a minimum may be moved to the zero of the format.
    if layout.bits == 8 and not layout.has_minimum:
        shift = layout.zero - data.zero
        return data.bits == 8 and shift >= 0 and int(data.codes.max(initial=0)) + shift < 256
    return data.zero == layout.zero and int(data.codes.max(initial=0)) < layout.codes


def _is_half(values: Floats | None) -> bool:
    """Whether float16 holds the values."""
    if values is None:
        return True
    with np.errstate(over="ignore"):
        return bool((values.astype(np.float16) == values).all())


def pack(data: Dense | Blocked) -> Packed:
    """A matrix [n, k] in the format `kernel_format` chooses, every value equal to the last bit."""
    name = kernel_format(data)
    if LAYOUTS[name].dense is not None and isinstance(data, Blocked):
        data = Dense(data.to_dense())
    outputs, columns = (data.values if isinstance(data, Dense) else data.codes).shape
    packed = np.zeros((-(-outputs // BLOCK), record_bytes(name, columns)), np.uint8)
    for blocks, rows in _chunks(outputs, columns):
        parts = sections(packed[blocks], name, columns)
        if isinstance(data, Dense):
            _put(parts["values"], data.values[rows])
        else:
            _put_blocked(parts, data, rows, LAYOUTS[name])
    return Packed(name, outputs, columns, packed)


def pack_gated(gate: Dense | Blocked, up: Dense | Blocked) -> Packed:
    """Two matrices [n, k] as one whose blocks alternate: 16 outputs of gate, the same of up.

    Raises:
        ValueError: their formats or shapes differ.
    """
    first, second = pack(gate), pack(up)
    if (first.format, first.n, first.k) != (second.format, second.n, second.k):
        raise ValueError(f"gate is {first.format} [{first.n}, {first.k}], up {second.format}")
    blocks = np.stack([first.data, second.data], axis=1)
    return Packed(first.format, first.n, first.k, blocks.reshape(-1, blocks.shape[-1]))


def _chunks(outputs: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Blocks and their rows, some at a time; the last block stands alone if it is not full."""
    step = max(1, _CHUNK_VALUES // (BLOCK * columns))
    full = outputs // BLOCK
    for start in range(0, full, step):
        end = min(full, start + step)
        yield slice(start, end), slice(BLOCK * start, BLOCK * end)
    if outputs % BLOCK:
        yield slice(full, full + 1), slice(BLOCK * full, outputs)


def _put(part: NDArray[Any], rows: NDArray[Any]) -> None:
    """Rows [outputs, items] into [blocks, items, 16]; outputs that are missing stay zero."""
    if len(rows) % BLOCK:
        part[0, :, : len(rows)] = rows.T
    else:
        part[:] = np.swapaxes(rows.reshape(len(part), BLOCK, -1), 1, 2)


def _put_blocked(
    parts: dict[str, NDArray[Any]], data: Blocked, rows: slice, layout: Layout
) -> None:
    codes = np.ascontiguousarray(data.codes[rows])
    if layout.bits == 8 and data.zero != layout.zero:
        codes = codes + np.uint8(layout.zero - data.zero)
    quads = np.zeros((len(parts["codes"]), codes.shape[1] // 4, BLOCK), np.uint32)
    _put(quads, codes.view(np.uint32))
    packed = _PACK_CODES[layout.bits](quads)
    parts["codes"].view(np.uint32)[:] = packed.reshape(*parts["codes"].shape[:2], -1)
    if data.levels is None:
        _put(parts["scale"], data.scale[rows])
        if data.minimum is not None:
            _put(parts["minimum"], data.minimum[rows])
        return
    levels = data.levels
    _put(parts["scale"], levels.inner[rows])
    _put(parts["outer"], levels.outer[rows])
    if levels.outer_minimum is not None and levels.inner_minimum is not None:
        _put(parts["minimum"], levels.inner_minimum[rows])
        _put(parts["outer_minimum"], levels.outer_minimum[rows])


Quads = NDArray[Any]
"""uint32 [blocks, columns / 4, 16]: four codes of a row, one per byte."""


def _pack_4(quads: Quads) -> Quads:
    """Even quads into the low halves, odd ones into the high."""
    result: Quads = quads[:, 0::2] | quads[:, 1::2] << 4
    return result


def _pack_6(quads: Quads) -> Quads:
    """Of each group of four quads the low four bits as above, then the high two bits together."""
    low = _pack_4(quads & 0x0F0F0F0F)
    high = quads >> 4 & 0x03030303
    joined = high[:, 0::4] | high[:, 1::4] << 2 | high[:, 2::4] << 4 | high[:, 3::4] << 6
    pairs = low.reshape(len(low), -1, 2, BLOCK)
    return np.concatenate([pairs, joined[:, :, None]], axis=2)


def _pack_8(quads: Quads) -> Quads:
    return quads


_PACK_CODES: dict[int, Callable[[Quads], Quads]] = {4: _pack_4, 6: _pack_6, 8: _pack_8}
