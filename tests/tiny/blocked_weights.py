"""Random tensors in the blocks of one kernel format, of sizes that suit a tiny model."""

from __future__ import annotations

import zlib

import numpy as np

from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.weights import Blocked, Levels, Weight, dense_weight, product
from quickdraft.weight_layout import LAYOUTS


class BlockedWeights(WeightMap):
    """Matrices in the format `form`, vectors in float32; the same values for the same name."""

    def __init__(self, form: str) -> None:
        super().__init__({})
        self._form = form

    def expect(self, name: str, shape: tuple[int, ...]) -> Weight:
        """A weight of that name and shape."""
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if len(shape) == 1:
            values = 0.3 * rng.standard_normal(shape) + (not name.endswith("bias"))
            return dense_weight(name, values.astype(np.float32))
        spread = 2.0 if "embed" in name else 4.0 / np.sqrt(shape[1])
        data = random_blocks(self._form, shape[0], shape[1], spread, rng)
        return Weight(name, shape, self._form, lambda: data, sensitive="v_proj" in name)


def random_blocks(
    form: str, rows: int, columns: int, spread: float, rng: np.random.Generator
) -> Blocked:
    """Blocks whose values lie around zero, within about half of `spread`."""
    layout = LAYOUTS[form]
    codes = rng.integers(0, layout.codes, (rows, columns), np.uint8)
    shape = (rows, columns // layout.group)
    step = spread / layout.codes
    bits = 8 if layout.bits == 6 else layout.bits
    if layout.inner is None:
        scale = (step * rng.uniform(0.5, 1.5, shape)).astype(np.float16).astype(np.float32)
        minimum = None
        if layout.has_minimum:
            minimum = (scale * -layout.codes / 2).astype(np.float16).astype(np.float32)
        return Blocked(codes, scale, minimum, bits, layout.group, layout.zero)
    outer = (step / 48 * rng.uniform(0.7, 1.3, (rows, columns // 256))).astype(np.float16)
    inner = rng.integers(24, 64, shape).astype(layout.inner)
    if not layout.has_minimum:
        levels = Levels(outer, inner)
        return Blocked(codes, product(outer, inner), None, bits, layout.group, layout.zero, levels)
    lower = (outer.astype(np.float32) * layout.codes / 2).astype(np.float16)
    levels = Levels(outer, inner, lower, inner)
    minimum = -product(lower, inner)
    return Blocked(codes, product(outer, inner), minimum, bits, layout.group, layout.zero, levels)
