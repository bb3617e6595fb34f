"""Weight formats as data: what each name means, and how floats become blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import OptionError
from quickdraft.export.weights import Blocked, Dense, Floats, Weight

GROUP = 32
_LARGEST_SCALE = float(np.finfo(np.float16).max) / 2
"""Half of what float16 holds, so that the neighbouring scales that are tried fit as well."""


@dataclass(frozen=True)
class WeightFormat:
    """How matrices are stored: in blocks of `bits`, else as `dtype`; keep: as they are.

    float_values: value projections of grouped heads stay in floats (decision 003): the formats
    that promise quality do this, the smallest does not.
    """

    name: str
    dtype: type[np.floating] = np.float32
    bits: int | None = None
    keep: bool = False
    float_values: bool = False


FORMATS = {
    fmt.name: fmt
    for fmt in (
        WeightFormat("fp32"),
        WeightFormat("fp16", dtype=np.float16),
        WeightFormat("int8", bits=8, float_values=True),
        WeightFormat("int4", bits=4),
        WeightFormat("gguf", keep=True, float_values=True),
    )
}


def weight_format(name: str, checkpoint_kind: str) -> WeightFormat:
    """The format called `name`; `auto` keeps GGUF blocks and turns floats into int8.

    Raises:
        OptionError: the name is unknown, or `gguf` is asked of another kind of checkpoint.
    """
    if name == "auto":
        name = "gguf" if checkpoint_kind == "gguf" else "int8"
    if name not in FORMATS:
        raise OptionError(f"unknown weight format {name!r} (there are: auto, {', '.join(FORMATS)})")
    if name == "gguf" and checkpoint_kind != "gguf":
        raise OptionError(
            "--weights gguf keeps the blocks of a GGUF file; this checkpoint has none"
        )
    return FORMATS[name]


def store(weight: Weight, fmt: WeightFormat) -> Dense | Blocked:
    """The values of a matrix [rows, columns] in the given format.

    Rows that a group of 32 does not divide stay float32, whatever the format.

    Raises:
        OptionError: a value is too large for the format.
    """
    if fmt.keep:
        return weight.load()
    if fmt.bits is None:
        return Dense(_cast(weight, fmt))
    if weight.shape[-1] % GROUP:
        return Dense(weight.dense())
    values = weight.dense()
    limit = _LARGEST_SCALE * (1 << (fmt.bits - 1))
    if max(values.max(), -values.min()) > limit:
        raise OptionError(
            f"{weight.name} holds values that {fmt.name} cannot (above {limit:g}); choose other "
            "weights, such as fp32"
        )
    return quantize(values, fmt.bits)


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
    neighbouring scales are tried as well, and each block keeps the one with the least error.
    Scales are float16 values, so that every flavour can hold the same weights.
    """
    # Some rows at a time: what is worked on stays in the processor's cache.
    step = max(1, (1 << 18) // values.shape[1])
    parts = [
        _quantize_rows(values[start : start + step], bits, group)
        for start in range(0, len(values), step)
    ]
    codes = np.concatenate([codes for codes, _ in parts])
    scale = np.concatenate([scale for _, scale in parts])
    return Blocked(codes, scale, None, bits, group, 1 << (bits - 1))


def _quantize_rows(values: Floats, bits: int, group: int) -> tuple[NDArray[np.uint8], Floats]:
    rows, columns = values.shape
    zero = 1 << (bits - 1)
    blocks = values.reshape(rows, columns // group, group)
    at = np.abs(blocks).argmax(-1)[..., None]
    extreme = np.take_along_axis(blocks, at, -1)[..., 0]
    factors = (1.0,) if bits == 8 else (1.0, 0.95, 0.9, 0.85, 1.05, -1.0, -0.93)
    best_scale = np.zeros(extreme.shape, np.float32)
    best_codes = np.full(blocks.shape, zero, np.uint8)
    best_error = np.full(extreme.shape, np.inf, np.float32)
    for factor in factors:
        scale = _half(extreme * np.float32(factor) / np.float32(-zero))
        codes, error = _round(blocks, scale, zero)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale, best_scale)
        best_codes = np.where(better[..., None], codes, best_codes)
    return best_codes.reshape(rows, columns), best_scale


def _half(scale: Floats) -> Floats:
    """The scales as float16 values. Subnormal ones, which have few bits, are rounded away from
    zero, so that the largest value of a block is not cut."""
    half = scale.astype(np.float16)
    cut = (np.abs(half) < np.finfo(np.float16).tiny) & (np.abs(half) < np.abs(scale))
    away = np.nextafter(half, np.copysign(np.float16(np.inf), half))
    return np.where(cut, away, half).astype(np.float32)


def _round(blocks: Floats, scale: Floats, zero: int) -> tuple[NDArray[np.uint8], Floats]:
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    steps = np.clip(np.rint(blocks * inverse[..., None]), -zero, zero - 1)
    error = np.square(steps * scale[..., None] - blocks).sum(-1, dtype=np.float32)
    return (steps + zero).astype(np.uint8), error
