"""GGUF tensor data as `Dense` or `Blocked` values, without requantising.

Layouts: ggml's `ggml-common.h`. Only the packing changes: codes become one byte each. The two
levels of scales of the K formats are kept, and multiplied out as well, in float32, as the published
dequantiser does before it multiplies by the codes. `Blocked.to_dense` equals it bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import CheckpointError
from quickdraft.export.checkpoints.gguf_header import TENSOR_TYPES, Buffer, Header, TensorInfo
from quickdraft.export.weights import Blocked, Dense, Floats, Levels, Weight, product

Bytes = NDArray[np.uint8]
_LAYOUTS = {name: (values, nbytes) for name, values, nbytes in TENSOR_TYPES.values()}
_DENSE = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_CHUNK_VALUES = 1 << 22
"""Values unpacked at a time, so that temporaries stay small beside the result."""


@dataclass(frozen=True)
class _Out:
    """Where the blocks of a chunk go. codes: [blocks, values]. scale, minimum: [blocks, groups],
    float32 or, where they have two levels, integers. outer: float16 [blocks, 2], what the integers
    of scale and minimum are multiplied with."""

    codes: Bytes
    scale: NDArray[Any]
    minimum: NDArray[Any]
    outer: NDArray[np.float16]


@dataclass(frozen=True)
class _Format:
    bits: int
    group: int
    zero: int
    has_minimum: bool
    unpack: Callable[[Bytes, _Out], None]
    integers: type[np.integer[Any]] | None = None
    """Of the inner level, where scales have two."""


def weights(data: Buffer, header: Header) -> dict[str, Weight]:
    """Every tensor of a file as a lazily read weight under its GGUF name."""
    return {name: _weight(data, header.name, info) for name, info in header.tensors.items()}


def _weight(data: Buffer, file: str, info: TensorInfo) -> Weight:
    return Weight(info.name, info.shape, info.type_name, lambda: read_tensor(data, file, info))


def read_tensor(data: Buffer, file: str, info: TensorInfo) -> Dense | Blocked:
    """Decode one tensor: `Blocked` for quantised matrices, `Dense` for everything else.

    Raises:
        CheckpointError: the tensor holds NaN or infinite values.
    """
    raw = np.frombuffer(data, np.uint8, info.nbytes, info.offset)
    if info.type_name in _DENSE:
        values = raw.view(_DENSE[info.type_name])
        if info.type_name == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        _check_finite(values, file, info)
        return Dense(values.reshape(info.shape))
    blocked = _read_blocks(raw, info)
    _check_finite(blocked.scale, file, info)
    if blocked.minimum is not None:
        _check_finite(blocked.minimum, file, info)
    if len(info.shape) == 2:
        return blocked
    return Dense(blocked.to_dense().reshape(info.shape))


def _check_finite(values: NDArray[Any], file: str, info: TensorInfo) -> None:
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"{file}: tensor {info.name!r} ({info.type_name}) holds NaN or infinite values; the "
            "file is damaged or its conversion failed"
        )


def _read_blocks(raw: Bytes, info: TensorInfo) -> Blocked:
    form = _FORMATS[info.type_name]
    values, nbytes = _LAYOUTS[info.type_name]
    packed = raw.reshape(-1, nbytes)
    blocks, groups = len(packed), values // form.group
    codes = np.empty((blocks, values), np.uint8)
    dtype = form.integers or np.float32
    scale = np.empty((blocks, groups), dtype)
    minimum = np.empty((blocks if form.has_minimum else 0, groups), dtype)
    outer = np.empty((blocks, 2), np.float16)
    step = _CHUNK_VALUES // values
    for start in range(0, blocks, step):
        part = slice(start, start + step)
        form.unpack(packed[part], _Out(codes[part], scale[part], minimum[part], outer[part]))
    return _blocked(form, _Out(codes, scale, minimum, outer), info.shape[-1])


def _blocked(form: _Format, out: _Out, columns: int) -> Blocked:
    """Rows of `columns` from blocks; scales of two levels are multiplied out."""
    groups = columns // form.group
    scale = out.scale.reshape(-1, groups)
    minimum = out.minimum.reshape(-1, groups) if form.has_minimum else None
    levels = None
    if form.integers is not None:
        outer = out.outer.reshape(len(scale), -1, 2)
        levels = Levels(outer[..., 0], scale)
        scale = product(levels.outer, levels.inner)
        if minimum is not None:
            levels = replace(levels, outer_minimum=outer[..., 1], inner_minimum=minimum)
            minimum = -product(outer[..., 1], minimum)
    return Blocked(
        out.codes.reshape(-1, columns), scale, minimum, form.bits, form.group, form.zero, levels
    )


def _half(packed: Bytes, at: int) -> Floats:
    """The float16 at byte `at` of each block, as float32 [blocks, 1]."""
    return np.ascontiguousarray(packed[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Bytes, out: Bytes) -> None:
    """Low nibbles to the first half of each block of `out`, high ones to the second."""
    half = packed.shape[-1]
    np.bitwise_and(packed, 15, out=out[..., :half])
    np.right_shift(packed, 4, out=out[..., half:])


def _fifth_bits(packed: Bytes, out: Bytes) -> None:
    """Add 16 to the codes whose bit is set in the 4 bytes of their block."""
    out |= np.unpackbits(packed, axis=1, bitorder="little") << 4


def _q4_0(packed: Bytes, out: _Out) -> None:
    out.scale[:] = _half(packed, 0)
    _nibbles(packed[:, 2:], out.codes)


def _q4_1(packed: Bytes, out: _Out) -> None:
    out.scale[:] = _half(packed, 0)
    out.minimum[:] = _half(packed, 2)
    _nibbles(packed[:, 4:], out.codes)


def _q5_0(packed: Bytes, out: _Out) -> None:
    out.scale[:] = _half(packed, 0)
    _nibbles(packed[:, 6:], out.codes)
    _fifth_bits(packed[:, 2:6], out.codes)


def _q5_1(packed: Bytes, out: _Out) -> None:
    out.scale[:] = _half(packed, 0)
    out.minimum[:] = _half(packed, 2)
    _nibbles(packed[:, 8:], out.codes)
    _fifth_bits(packed[:, 4:8], out.codes)


def _q8_0(packed: Bytes, out: _Out) -> None:
    out.scale[:] = _half(packed, 0)
    # int8 + 128, as a flip of the sign bit.
    np.bitwise_xor(packed[:, 2:], 0x80, out=out.codes)


def _k_scales(packed: Bytes, out: _Out) -> None:
    """Scales and minimums of the 8 groups of a Q4_K or Q5_K block: 6 bits each in bytes 4..15.

    Bytes 0-3: scales 0-3, and in the top two bits those of scales 4-7. Bytes 4-7: the same for
    the minimums. Bytes 8-11: low nibbles of scales 4-7, high nibbles of minimums 4-7.
    """
    first, second, third = packed[:, 4:8], packed[:, 8:12], packed[:, 12:16]
    out.scale[:, :4], out.scale[:, 4:] = first & 63, (third & 15) | (first >> 6 << 4)
    out.minimum[:, :4], out.minimum[:, 4:] = second & 63, (third >> 4) | (second >> 6 << 4)
    out.outer[:] = np.ascontiguousarray(packed[:, :4]).view("<f2")


def _q4_k(packed: Bytes, out: _Out) -> None:
    _k_scales(packed, out)
    _nibbles(packed[:, 16:].reshape(-1, 4, 32), out.codes.reshape(-1, 4, 64))


def _q5_k(packed: Bytes, out: _Out) -> None:
    _k_scales(packed, out)
    _nibbles(packed[:, 48:].reshape(-1, 4, 32), out.codes.reshape(-1, 4, 64))
    groups, high = out.codes.reshape(-1, 8, 32), packed[:, 16:48]
    for bit in range(8):
        groups[:, bit] |= (high >> bit & 1) << 4


def _q6_k(packed: Bytes, out: _Out) -> None:
    low = packed[:, :128].reshape(-1, 2, 64)
    high = packed[:, 128:192].reshape(-1, 2, 32)
    halves = out.codes.reshape(-1, 2, 128)
    _nibbles(low, halves)
    for part in range(4):
        halves[:, :, 32 * part : 32 * part + 32] |= (high >> 2 * part & 3) << 4
    out.scale[:] = packed[:, 192:208].view(np.int8)
    out.outer[:, 0] = _half(packed, 208)[:, 0]


_FORMATS: dict[str, _Format] = {
    "Q4_0": _Format(4, 32, 8, False, _q4_0),
    "Q4_1": _Format(4, 32, 0, True, _q4_1),
    "Q5_0": _Format(8, 32, 16, False, _q5_0),
    "Q5_1": _Format(8, 32, 0, True, _q5_1),
    "Q8_0": _Format(8, 32, 128, False, _q8_0),
    "Q4_K": _Format(4, 32, 0, True, _q4_k, np.uint8),
    "Q5_K": _Format(8, 32, 0, True, _q5_k, np.uint8),
    "Q6_K": _Format(8, 16, 32, False, _q6_k, np.int8),
}
