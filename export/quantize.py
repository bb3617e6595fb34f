"""Weight formats as data: what each name means, and how floats become blocks."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import OptionError
from quickdraft.export.weights import Blocked, Dense, Floats, Weight

GROUP = 32
WHOLE_ROW = 0
"""Stands for a group as long as the row."""
_WITH_BLOCKS = ("gguf", "onnx")
"""Kinds of checkpoints whose weights may be blocks already."""
_FACTORS = tuple(map(np.float32, (0.95, 0.9, 0.85, 1.05, -1.0, -0.93)))
"""Neighbours of the scale that maps the largest value of a block to the last code."""
_WIDE_FACTORS = tuple(
    np.float32(sign * step / 20) for sign in (1, -1) for step in range(21, 8, -1) if step != 20
)
"""The same for groups beyond 32: the more values share a scale, the more of the largest may be cut
for the sake of the others."""
_LARGEST_SCALE = float(np.finfo(np.float16).max) / 2
"""Half of what float16 holds, so that the neighbouring scales that are tried fit as well."""


@dataclass(frozen=True)
class WeightFormat:
    """How matrices are stored: in blocks of `bits`, else as `dtype`; keep: as they are.

    groups: how many values of a row share a scale, best first: the first that divides the row is
    taken (WHOLE_ROW always does), and a row that none divides stays float32.
    vocabulary: bits of matrices with a row for every token, None for those of the others.
    float_values: value projections of grouped heads stay in floats (decision 003): the formats
    that promise quality do this, the smallest does not.
    """

    name: str
    dtype: type[np.floating] = np.float32
    bits: int | None = None
    keep: bool = False
    float_values: bool = False
    groups: tuple[int, ...] = (GROUP,)
    vocabulary: int | None = None

    def group_of(self, columns: int) -> int | None:
        """Values that share a scale in rows of so many; None where no group fits."""
        for group in self.groups:
            if columns % (group or columns) == 0 and columns % 2 == 0:  # two codes to a byte
                return group or columns
        return None


FORMATS = {
    fmt.name: fmt
    for fmt in (
        WeightFormat("fp32"),
        WeightFormat("fp16", dtype=np.float16),
        WeightFormat("int8", bits=8, float_values=True),
        WeightFormat("int4", bits=4),
        WeightFormat("int4-g128", bits=4, groups=(128, 64, 32), vocabulary=8),
        WeightFormat("int4-channel", bits=4, groups=(WHOLE_ROW,), vocabulary=8),
        WeightFormat("gguf", keep=True, float_values=True),
    )
}


def weight_format(name: str, checkpoint_kind: str) -> WeightFormat:
    """The format called `name`; `auto` keeps blocks and turns floats into int8.

    Raises:
        OptionError: the name is unknown, or `gguf` is asked of another kind of checkpoint.
    """
    if name == "auto":
        name = "gguf" if checkpoint_kind in _WITH_BLOCKS else "int8"
    if name not in FORMATS:
        raise OptionError(f"unknown weight format {name!r} (there are: auto, {', '.join(FORMATS)})")
    if name == "gguf" and checkpoint_kind not in _WITH_BLOCKS:
        raise OptionError(
            "--weights gguf keeps the blocks of a GGUF file; this checkpoint has none"
        )
    return FORMATS[name]


def store(weight: Weight, fmt: WeightFormat) -> Dense | Blocked:
    """The values of a matrix [rows, columns] in the given format.

    Rows that no group of the format divides stay float32.

    Raises:
        OptionError: a value is too large for the format.
    """
    if fmt.keep:
        return weight.load()
    if fmt.bits is None:
        return Dense(_cast(weight, fmt))
    group = fmt.group_of(weight.shape[-1])
    if group is None:
        return Dense(weight.dense())
    values = weight.dense()
    bits = fmt.vocabulary if weight.vocabulary and fmt.vocabulary else fmt.bits
    limit = _LARGEST_SCALE * (1 << (bits - 1))
    if max(values.max(), -values.min()) > limit:
        raise OptionError(
            f"{weight.name} holds values that {fmt.name} cannot (above {limit:g}); choose other "
            "weights, such as fp32"
        )
    return quantize(values, bits, group)


def _cast(weight: Weight, fmt: WeightFormat) -> NDArray[np.floating]:
    with np.errstate(over="ignore"):
        values = weight.dense().astype(fmt.dtype)
    if not np.isfinite(values).all():  # the values of a checkpoint are finite
        raise OptionError(
            f"{weight.name} holds values that {fmt.name} cannot (above "
            f"{np.finfo(fmt.dtype).max:g}); choose other weights, such as fp32 or int8"
        )
    return values


def quantize(values: Floats, bits: int, group: int = GROUP) -> Blocked:
    """Round float32 [rows, columns] to symmetric blocks of `bits`, the least squares way.

    The value of largest magnitude maps to -2**(bits-1), as in GGUF's Q4_0; at 4 bits a few
    neighbouring scales are tried as well (many where a group is longer than 32), and each block
    keeps the one with the least error.
    Scales are float16 values, so that every flavour can hold the same weights.
    """
    # Some rows at a time: what is worked on stays in the processor's cache.
    step = max(1, (1 << 17) // values.shape[1])
    chunks = [values[start : start + step] for start in range(0, len(values), step)]
    with ThreadPoolExecutor() as pool:
        parts = list(pool.map(partial(_quantize_rows, bits=bits, group=group), chunks))
    codes = np.concatenate([codes for codes, _ in parts])
    scale = np.concatenate([scale for _, scale in parts])
    return Blocked(codes, scale, None, bits, group, 1 << (bits - 1))


def _quantize_rows(values: Floats, *, bits: int, group: int) -> tuple[NDArray[np.uint8], Floats]:
    blocks, zero = values.reshape(-1, group), 1 << (bits - 1)
    high, low = blocks.max(-1), blocks.min(-1)
    step: Floats = np.divide(np.where(high > -low, high, low), np.float32(-zero))
    scale = _half(step)
    if bits == 4:
        factors = _FACTORS if group <= GROUP else _WIDE_FACTORS
        scale = _best(blocks, [scale, *(_half(step * factor) for factor in factors)], zero)
    codes = (_steps(blocks, scale, zero) + np.float32(zero)).astype(np.uint8)
    return codes.reshape(values.shape), scale.reshape(len(values), -1)


def _best(blocks: Floats, scales: Sequence[Floats], zero: int) -> Floats:
    """The scale of each block with the least error, the first of equals."""
    errors = []
    for scale in scales:
        steps = _steps(blocks, scale, zero)
        # Of (scale * steps - blocks)**2, summed, what depends on the scale.
        squares = np.einsum("ij,ij->i", steps, steps)
        errors.append(scale * (scale * squares - 2 * np.einsum("ij,ij->i", steps, blocks)))
    chosen = np.argmin(errors, axis=0)
    result: Floats = np.take_along_axis(np.array(scales), chosen[None], 0)[0]
    return result


def _steps(blocks: Floats, scale: Floats, zero: int) -> Floats:
    """How often a scale goes into each value, whole and within the codes."""
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    steps: Floats = blocks * inverse[:, None]
    np.rint(steps, out=steps)
    return np.clip(steps, -zero, zero - 1, out=steps)


def _half(scale: Floats) -> Floats:
    """The scales as float16 values. Subnormal ones, which have few bits, are rounded away from
    zero, so that the largest value of a block is not cut."""
    half = scale.astype(np.float16)
    cut = (np.abs(half) < np.finfo(np.float16).tiny) & (np.abs(half) < np.abs(scale))
    away = np.nextafter(half, np.copysign(np.float16(np.inf), half))
    return np.where(cut, away, half).astype(np.float32)
