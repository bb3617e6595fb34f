"""Rotary embedding in OpenVINO graphs: cosines and sines read from tables (see rows.turn_table)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from openvino import opset15 as opset

from quickdraft.export.emitters.base import Part
from quickdraft.export.emitters.openvino_weights import Node, constant
from quickdraft.export.emitters.rows import turn_table
from quickdraft.export.ops import Rope
from quickdraft.export.weights import Floats

STRIDE = 64
"""Positions between the rows of the coarse one of two tables."""
_AXIS = np.array(0, np.int64)


def turns(positions: Node, rope: Rope, reach: int, whole: bool) -> tuple[Node, Node]:
    """Cosine and sine of the angles of positions [n] below `reach`, [n, 1, pairs] each.

    whole: read both from a table of all positions, which is for short caches. Else from one of
    every STRIDE-th position and one of those between, whose angles add up.
    """
    if whole:
        places = np.arange(reach, dtype=np.float32)
        return _read(_table(rope, places, rope.attention_factor), positions)
    stride = constant(np.array(STRIDE, np.int64))
    above = opset.divide(positions, stride)
    below = opset.subtract(positions, opset.multiply(above, stride))
    steps = np.arange(-(-reach // STRIDE), dtype=np.float64) * STRIDE
    cosine, sine = _read(_table(rope, steps, 1.0), above)
    near = _read(_table(rope, np.arange(STRIDE, dtype=np.float64), rope.attention_factor), below)
    return (
        opset.subtract(opset.multiply(cosine, near[0]), opset.multiply(sine, near[1])),
        opset.add(opset.multiply(sine, near[0]), opset.multiply(cosine, near[1])),
    )


def reach_of(part: Part) -> int:
    """Above all positions that a part sees."""
    specs = [part.spec, *([part.target] if part.target is not None else [])]
    sources = [spec.source.length for spec in specs if spec.source is not None]
    return max([spec.context_length for spec in specs] + sources)


def _table(rope: Rope, places: NDArray[Any], factor: float) -> Floats:
    """Float32 [places, 1, 2 * pairs], see turn_table."""
    return turn_table(rope, places, factor)[:, None]


def _read(table: Floats, rows: Node) -> tuple[Node, Node]:
    found = opset.gather(constant(table), rows, constant(_AXIS))
    pairs = table.shape[-1] // 2
    sizes = np.array([pairs, pairs], np.int64)
    cosine, sine = opset.variadic_split(found, constant(np.array(2)), constant(sizes)).outputs()
    return cosine, sine
