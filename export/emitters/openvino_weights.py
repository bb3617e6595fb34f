"""Weights as OpenVINO constants: dense, or blocks with the steps that decode them in front.

Codes stay in 4 or 8 bits: every plugin knows the chain convert, subtract, multiply, reshape in
front of a product as compressed weights, and multiplies by the codes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset15 as opset

from quickdraft.export.quantize import WeightFormat, store
from quickdraft.export.weights import Blocked, Dense, Floats, Weight

Node = Any
"""openvino.Node or openvino.Output; the package has no types of its own for operands."""


def constant(array: NDArray[Any]) -> Node:
    """A constant of the array's type and shape."""
    return ov.op.Constant(np.ascontiguousarray(array))


class WeightStore:
    """Puts each weight into the graph once, in the wanted format."""

    def __init__(self, fmt: WeightFormat) -> None:
        self._format = fmt
        self._matrices: dict[str, Node] = {}
        self._vectors: dict[str, Node] = {}

    def form(self, weight: Weight) -> str:
        """How a matrix will be stored; what is stored alike can be joined without a change."""
        return weight.stored_as if self._format.keep else ""

    def vector(self, weight: Weight) -> Node:
        """A norm scale or bias, float32, flat."""
        if weight.name not in self._vectors:
            self._vectors[weight.name] = constant(weight.dense().reshape(-1))
        return self._vectors[weight.name]

    def matrix(self, weight: Weight, keep_float: bool = False) -> Node:
        """Float32 [rows, columns], decoded by the graph. keep_float: stored as float32."""
        if weight.name not in self._matrices:
            data = Dense(weight.dense()) if keep_float else store(weight, self._format)
            decoded = _blocks(data) if isinstance(data, Blocked) else _dense(data)
            decoded.set_friendly_name(weight.name)
            self._matrices[weight.name] = decoded
        return self._matrices[weight.name]


def _dense(data: Dense) -> Node:
    if data.values.dtype == np.float16:
        return opset.convert(constant(data.values), np.float32)
    return constant(np.asarray(data.values, np.float32))


def _blocks(data: Blocked) -> Node:
    """scale * (codes - zero), group by group.

    Symmetric blocks become signed codes without a zero point, the one form that every device
    takes. Others have a zero point per group, float32, as a minimum is no whole number of steps.
    Where a whole row is one group there is nothing to cut, nor to put together again.
    """
    rows, columns = data.codes.shape
    whole = data.group == columns
    groups = [rows, columns] if whole else [rows, columns // data.group, data.group]
    scale, codes = data.scale, data.codes
    small = data.bits <= 4
    symmetric = data.minimum is None and data.zero == (8 if small else 128)
    if symmetric:
        codes = codes ^ np.uint8(data.zero)  # moved by half the range: two's complement
        kind = ov.Type.i4 if small else ov.Type.i8
        values = opset.convert(_packed(codes, groups, kind), np.float32)
    else:
        codes, scale, zero = _with_zero_points(data)
        kind = ov.Type.u4 if small else ov.Type.u8
        values = opset.convert(_packed(codes, groups, kind), np.float32)
        values = opset.subtract(values, constant(zero if whole else zero[:, :, None]))
    factor = np.asarray(scale, np.float32)
    values = opset.multiply(values, constant(factor if whole else factor[:, :, None]))
    if whole:
        return values
    return opset.reshape(values, constant(np.array([rows, columns], np.int64)), False)


def _with_zero_points(data: Blocked) -> tuple[NDArray[np.uint8], Floats, Floats]:
    """Codes, scales and zero points of blocks with a minimum: scale * (codes - zero point)."""
    codes, scale = data.codes, np.asarray(data.scale, np.float32)
    zero = np.full(scale.shape, data.zero, np.float32)
    if data.minimum is None:
        return codes, scale, zero
    flat = scale == 0  # all values are the minimum, and no zero point brings that about
    divisor = np.where(flat, np.float32(1), scale)
    zero -= np.where(flat, np.float32(0), data.minimum / divisor)
    if flat.any():
        codes = np.where(np.repeat(flat, data.group, axis=1), np.uint8(0), codes)
        zero[flat] = -1
        scale = np.where(flat, data.minimum, scale)
    return codes, scale, zero


def _packed(codes: NDArray[np.uint8], shape: list[int], kind: Any) -> Node:
    """A constant of 4 or 8 bits a code; of two 4-bit codes in a byte the first one is low."""
    if kind in (ov.Type.i4, ov.Type.u4):
        codes = (codes[:, ::2] & np.uint8(15)) | (codes[:, 1::2] << np.uint8(4))
    # Memory of its own: that of an array would go with the array.
    tensor = ov.Tensor(kind, ov.Shape(shape))
    tensor.data.reshape(-1)[:] = codes.reshape(-1).view(tensor.data.dtype)
    return ov.op.Constant(tensor)
