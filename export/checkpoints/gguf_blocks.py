"""GGUF tensor data as `Dense` or `Blocked` values, without requantising.

Layouts: ggml's `ggml-common.h`. Only the packing changes: codes become one byte each, and the two
levels of scales of the K formats are multiplied out, in float32, as the published dequantiser does
before it multiplies by the codes. `Blocked.to_dense` therefore equals it bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import CheckpointError
from quickdraft.export.checkpoints.gguf_header import TENSOR_TYPES, Buffer, Header, TensorInfo
from quickdraft.export.weights import Blocked, Dense, Floats, Weight

Bytes = NDArray[np.uint8]
_LAYOUTS = {name: (values, nbytes) for name, values, nbytes in TENSOR_TYPES.values()}
_DENSE = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_CHUNK_VALUES = 1 << 22
"""Values unpacked at a time, so that temporaries stay small beside the result."""


@dataclass(frozen=True)
class _Out:
    """Where the blocks of a chunk go. codes: [blocks, values]. scale, minimum: [blocks, groups]."""

    codes: Bytes
    scale: Floats
    minimum: Floats


@dataclass(frozen=True)
class _Format:
    bits: int
    group: int
    zero: int
    has_minimum: bool
    unpack: Callable[[Bytes, _Out], None]


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
    scale = np.empty((blocks, groups), np.float32)
    minimum = np.empty((blocks if form.has_minimum else 0, groups), np.float32)
    step = _CHUNK_VALUES // values
    for start in range(0, blocks, step):
        part = slice(start, start + step)
        form.unpack(packed[part], _Out(codes[part], scale[part], minimum[part]))
    columns = info.shape[-1]
    return Blocked(
        codes.reshape(-1, columns),
        scale.reshape(-1, columns // form.group),
        minimum.reshape(-1, columns // form.group) if form.has_minimum else None,
        form.bits,
        form.group,
        form.zero,
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
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], axis=1)
    minimums = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], axis=1)
    np.multiply(_half(packed, 0), scales.astype(np.float32), out=out.scale)
    np.multiply(-_half(packed, 2), minimums.astype(np.float32), out=out.minimum)


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
    scales = np.ascontiguousarray(packed[:, 192:208]).view(np.int8).astype(np.float32)
    np.multiply(_half(packed, 208), scales, out=out.scale)


_FORMATS: dict[str, _Format] = {
    "Q4_0": _Format(4, 32, 8, False, _q4_0),
    "Q4_1": _Format(4, 32, 0, True, _q4_1),
    "Q5_0": _Format(8, 32, 16, False, _q5_0),
    "Q5_1": _Format(8, 32, 0, True, _q5_1),
    "Q8_0": _Format(8, 32, 128, False, _q8_0),
    "Q4_K": _Format(4, 32, 0, True, _q4_k),
    "Q5_K": _Format(8, 32, 0, True, _q5_k),
    "Q6_K": _Format(8, 16, 32, False, _q6_k),
}
