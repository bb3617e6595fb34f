"""The variables of a CTranslate2 `model.bin`, read under hard limits.

Format: `ModelSpec._serialize` of CTranslate2's converters, binary versions 4 to 6, little endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import CheckpointError, UnsupportedModel
from quickdraft.export.checkpoints.gguf_header import open_file
from quickdraft.export.weights import Dense, Weight

MAX_VARIABLES = 20_000
MAX_NAME_BYTES = 1_024
MAX_DIMENSIONS = 8
_VERSIONS = range(4, 7)
_DTYPES: Mapping[int, tuple[str, str]] = {
    0: ("F32", "<f4"),
    1: ("I8", "i1"),
    2: ("I16", "<i2"),
    3: ("I32", "<i4"),
    4: ("F16", "<f2"),
    5: ("BF16", "<u2"),
}
_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Variables:
    """An open file. spec: the class of model it holds. names: tensors and scalars, aliases too."""

    path: Path
    spec: str
    data: mmap.mmap
    places: Mapping[str, _Place]

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def number(self, name: str, default: int | None = None) -> int:
        """A scalar of the model.

        Raises:
            CheckpointError: there is no such integer, and no default.
        """
        place = self.places.get(name)
        if place is None and default is not None:
            return default
        if place is None or math.prod(place.shape) != 1 or place.dtype in _FLOATS:
            raise CheckpointError(f"{self.path}: there is no whole number {name!r}")
        return int(self._values(place).reshape(-1)[0])

    def weight(self, name: str) -> Weight:
        """A tensor of floats, or of integers with a scale per row.

        Raises:
            CheckpointError: there is no such tensor. UnsupportedModel: it is quantised in a way
                that is not read.
        """
        place = self.places.get(name)
        if place is None:
            raise CheckpointError(f"{self.path}: there is no tensor {name!r}")
        if place.dtype in _FLOATS:
            return Weight(name, place.shape, place.dtype, lambda: Dense(self._floats(place)))
        scale = self.places.get(f"{name}_scale")
        if place.dtype != "I8" or scale is None or scale.dtype != "F32" or not place.shape:
            raise UnsupportedModel(
                f"{self.path}: the tensor {name!r} is stored as {place.dtype}; convert the model "
                "with --quantization float16, float32 or int8"
            )
        if math.prod(scale.shape) not in (1, place.shape[0]):
            raise CheckpointError(f"{self.path}: the scales of {name!r} do not fit its rows")

        def load() -> Dense:
            # The file keeps 127 / largest, so values are codes over scales.
            rows = self._values(place).astype(np.float32)
            divisors = self._floats(scale).reshape(-1, *(1,) * (rows.ndim - 1))
            return Dense(rows / divisors)

        return Weight(name, place.shape, "I8", load)

    def _values(self, place: _Place) -> NDArray[Any]:
        kind = _DTYPES[place.code][1]
        count = math.prod(place.shape)
        return np.frombuffer(self.data, kind, count, place.offset).reshape(place.shape)

    def _floats(self, place: _Place) -> NDArray[Any]:
        values = self._values(place)
        if place.dtype == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        if not np.isfinite(values).all():
            raise CheckpointError(f"{self.path}: a tensor has values that are not finite numbers")
        return values


@dataclass(frozen=True)
class _Place:
    shape: tuple[int, ...]
    code: int
    offset: int

    @property
    def dtype(self) -> str:
        return _DTYPES[self.code][0]


class _Cursor:
    """Reads a mapped file in order and never beyond its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self.at = path, data, 0

    def unpack(self, form: str) -> tuple[int, ...]:
        return struct.unpack_from(form, self._data, self.skip(struct.calcsize(form)))

    def skip(self, count: int) -> int:
        """Go past `count` bytes; gives where they begin."""
        if count > len(self._data) - self.at:
            raise CheckpointError(
                f"{self._path} is cut off: {count} bytes are wanted at byte {self.at} and "
                f"{len(self._data) - self.at} are left; fetch it again"
            )
        self.at += count
        return self.at - count

    def text(self) -> str:
        (size,) = self.unpack("<H")
        if not 1 <= size <= MAX_NAME_BYTES:
            raise CheckpointError(f"{self._path} is damaged: a name of {size} bytes")
        start = self.skip(size)
        try:
            return self._data[start : start + size - 1].decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(f"{self._path} is damaged: a name is not UTF-8") from None


def read_variables(path: Path) -> Variables:
    """Read the list of what a file holds; values stay on disk.

    Raises:
        CheckpointError: it is damaged. UnsupportedModel: of a version that is not read.
    """
    data = open_file(path)
    cursor = _Cursor(path, data)
    (version,) = cursor.unpack("<I")
    if version not in _VERSIONS:
        raise UnsupportedModel(
            f"{path} has the CTranslate2 format {version}; {_VERSIONS[0]} to {_VERSIONS[-1]} are "
            "read: convert it again with a CTranslate2 of 2022 or later"
        )
    spec = cursor.text()
    _, count = cursor.unpack("<II")
    if count > MAX_VARIABLES:
        raise CheckpointError(f"{path} claims {count} variables; at most {MAX_VARIABLES} are read")
    places: dict[str, _Place] = {}
    for _ in range(count):
        name = cursor.text()
        if name in places:
            raise CheckpointError(f"{path} is damaged: it has the variable {name!r} twice")
        places[name] = _read_place(path, name, cursor)
    (count,) = cursor.unpack("<I")
    if count > MAX_VARIABLES:
        raise CheckpointError(f"{path} claims {count} aliases; at most {MAX_VARIABLES} are read")
    for _ in range(count):
        alias, name = cursor.text(), cursor.text()
        if name not in places or alias in places:
            raise CheckpointError(f"{path} is damaged: {alias!r} stands for {name[:80]!r}")
        places[alias] = places[name]
    return Variables(path, spec, data, places)


def _read_place(path: Path, name: str, cursor: _Cursor) -> _Place:
    (rank,) = cursor.unpack("<B")
    if rank > MAX_DIMENSIONS:
        raise CheckpointError(f"{path} is damaged: {name!r} has {rank} dimensions")
    shape = cursor.unpack(f"<{rank}I")
    code, size = cursor.unpack("<BI")
    if code not in _DTYPES:
        raise UnsupportedModel(f"{path}: {name!r} has the unknown type {code}")
    if math.prod(shape) * np.dtype(_DTYPES[code][1]).itemsize != size:
        raise CheckpointError(f"{path} is damaged: {name!r} of shape {list(shape)} in {size} bytes")
    return _Place(shape, code, cursor.skip(size))
