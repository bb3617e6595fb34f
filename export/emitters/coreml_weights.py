"""Weights as MIL constants: dense, or codes that Core ML expands when it loads or multiplies.

A package has one function per number of rows. Every function names the same weights, and a
constant carries an id by which the writer stores its bytes once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types
from numpy.typing import NDArray

from quickdraft.errors import OptionError
from quickdraft.export.quantize import WeightFormat, store
from quickdraft.export.weights import Blocked, Dense, Weight

Var = Any
"""A value of a MIL program; coremltools has no types."""

_SIGNED = {4: types.int4, 8: types.int8}
_UNSIGNED = {4: types.uint4, 8: types.uint8}


@dataclass(frozen=True)
class Codes:
    """value = scale * codes + offset, the offset None where it is zero.

    codes: of MIL's int4, uint4 or int8 [rows, columns]. scale, offset: of the compute type
    [rows, groups].
    """

    codes: NDArray[Any]
    scale: NDArray[Any]
    offset: NDArray[Any] | None


class Constants:
    """What the functions of one package share: arrays by name, each loaded once."""

    def __init__(self, fmt: WeightFormat, dtype: type[np.floating]) -> None:
        """dtype: of what is computed, float32 or float16."""
        self.dtype = dtype
        self._format = fmt
        self._arrays: dict[str, NDArray[Any]] = {}
        self._matrices: dict[str, NDArray[Any] | Codes] = {}
        self._names: dict[str, str] = {}
        self._vars: dict[str, Var] = {}

    def start(self) -> None:
        """Begin another function: values belong to the one they were made in."""
        self._vars.clear()

    def vector(self, weight: Weight) -> Var:
        """A norm scale or bias, one axis."""
        return self.array(weight.name, lambda: weight.dense().reshape(-1))

    def array(self, name: str, make: Callable[[], NDArray[Any]]) -> Var:
        """A dense constant in the compute type; `make` is called where the name is new.

        Raises:
            OptionError: a value is too large for the type.
        """
        if name not in self._arrays:
            self._arrays[name] = self._cast(name, make())
        return self._constant(name, self._arrays[name])

    def table(self, weight: Weight) -> Var:
        """A small table of rows, kept dense."""
        return self.array(f"{weight.name}.dense", weight.dense)

    def matrix(self, weight: Weight) -> tuple[Var, Var | None]:
        """A matrix [out, in] in the weight format, and what its codes leave out: an offset
        [out, groups], which belongs to every value of a group; None where there is none."""
        name = weight.name
        if name not in self._matrices:
            self._matrices[name] = self._load(weight)
        stored = self._matrices[name]
        if not isinstance(stored, Codes):
            return self._constant(name, stored), None
        if name not in self._vars:
            codes = self._constant(f"{name}.codes", stored.codes)
            scale = self._constant(f"{name}.scale", stored.scale)
            self._vars[name] = mb.constexpr_blockwise_shift_scale(
                data=codes, scale=scale, name=self._name(name)
            )
        offset = None
        if stored.offset is not None:
            offset = self._constant(f"{name}.offset", stored.offset)
        return self._vars[name], offset

    def _load(self, weight: Weight) -> NDArray[Any] | Codes:
        data = store(weight, self._format)
        if isinstance(data, Dense):
            return self._cast(weight.name, np.asarray(data.values, np.float32))
        codes, left = to_codes(data)
        offset = data.minimum
        if left:
            moved = data.scale * np.float32(left)
            offset = moved if offset is None else offset + moved
        if offset is not None:
            offset = self._cast(f"{weight.name}.offset", offset) if offset.any() else None
        return Codes(codes, self._cast(f"{weight.name}.scale", data.scale), offset)

    def _cast(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            cast = np.ascontiguousarray(values, self.dtype)
        if not np.isfinite(cast).all():  # the values of a checkpoint are finite
            raise OptionError(
                f"{name} holds values above {np.finfo(self.dtype).max:g}, which float16 cannot "
                "hold; choose --weights fp32 for Core ML"
            )
        return cast

    def _constant(self, name: str, array: NDArray[Any]) -> Var:
        if name not in self._vars:
            value = mb.const(val=array, name=self._name(name))
            value.op.weight_id = self._name(name)
            self._vars[name] = value
        return self._vars[name]

    def _name(self, name: str) -> str:
        """A name that MIL takes, another one for every name."""
        if name not in self._names:
            plain = re.sub("[^A-Za-z0-9_]", "_", f"weight_{name}")
            taken = set(self._names.values())
            self._names[name] = plain if plain not in taken else f"{plain}_{len(taken)}"
        return self._names[name]


def to_codes(data: Blocked) -> tuple[NDArray[Any], int]:
    """The codes of blocks less their zero, in the narrowest type of MIL that holds them, and what
    is still to be added to each: 0, unless no type holds the difference."""
    low, high = int(data.codes.min()) - data.zero, int(data.codes.max()) - data.zero
    for bits in (4, 8):
        if -(1 << (bits - 1)) <= low and high < 1 << (bits - 1):
            return _as_type(data.codes.astype(np.int16) - data.zero, _SIGNED[bits]), 0
        if low >= 0 and high < 1 << bits:
            return _as_type(data.codes.astype(np.int16) - data.zero, _UNSIGNED[bits]), 0
    return _as_type(data.codes, types.uint8), -data.zero


def _as_type(codes: NDArray[Any], kind: Any) -> NDArray[Any]:
    array: NDArray[Any] = codes.astype(types.nptype_from_builtin(kind))
    return array
