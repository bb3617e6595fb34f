"""Writing safetensors one tensor at a time, so that memory holds one tensor, not one model."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DTYPES = {"float32": "F32", "float16": "F16", "uint8": "U8"}
_HEADER_BYTES = 1 << 20


class WeightFile:
    """A safetensors file being written. The header, whose length must be known first, is padded
    with spaces to a size that holds the names and shapes of some thousand tensors.

    Data is written in order of arrival, and so that offsets tile, as the format asks.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._file.seek(8 + _HEADER_BYTES)
        self._header: dict[str, Any] = {}
        self._offset = 0

    def add(self, name: str, values: NDArray[Any]) -> None:
        """Append an array (float32, float16 or uint8)."""
        data = np.ascontiguousarray(values)
        end = self._offset + data.nbytes
        self._header[name] = {
            "dtype": _DTYPES[data.dtype.name],
            "shape": list(values.shape),
            "data_offsets": [self._offset, end],
        }
        self._file.write(data.astype(data.dtype.newbyteorder("<"), copy=False).data)
        self._offset = end

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._file:
            if error is None:
                self._write_header()

    def _write_header(self) -> None:
        text = json.dumps(self._header, separators=(",", ":")).encode()
        if len(text) > _HEADER_BYTES:
            raise ValueError(f"{len(self._header)} tensors do not fit the header")
        self._file.seek(0)
        self._file.write(_HEADER_BYTES.to_bytes(8, "little") + text.ljust(_HEADER_BYTES))
