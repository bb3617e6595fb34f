"""Reading safetensors files that nobody vouches for.

The header is parsed here, not by the library, which accepts duplicate names and any number of
tensors. Tensors are mapped when they are loaded, one at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from quickdraft import strict_json
from quickdraft.errors import CheckpointError, UnsupportedModel
from quickdraft.export.weights import Dense, Weight

MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 20_000
MAX_NAME_LENGTH = 500
MAX_DIMENSIONS = 8

_READABLE: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
_INTEGERS: Mapping[str, np.dtype[Any]] = {"U8": np.dtype("u1"), "I32": np.dtype("<i4")}
# Besides weights, files hold masks and counters; no architecture reads those.
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "BOOL": 1, "U8": 1, "I8": 1, "I32": 4, "I64": 8}


@dataclass(frozen=True)
class _Entry:
    """A tensor of the header. start: bytes from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


def read_safetensors(path: Path, *, integers: bool = False) -> dict[str, Weight]:
    """The tensors of a file by name; values stay on disk until a weight is loaded.

    integers: whether uint8 and int32 tensors are wanted, too.

    Raises:
        CheckpointError: the file is truncated or malformed, or says something impossible.
        UnsupportedModel: a tensor has a floating type we do not read.
    """
    header, start, size = _load_header(path)
    entries = _read_header(path, header, start)
    _check_tiling(path, entries, start, size)
    readable = {**_READABLE, **(_INTEGERS if integers else {})}
    return {name: _weight(path, name, entry, readable) for name, entry in entries.items()}


def read_metadata(path: Path) -> Mapping[str, str]:
    """The texts in the header of a file.

    Raises:
        CheckpointError: the file is truncated or malformed.
    """
    header, _, _ = _load_header(path)
    found = header.get("__metadata__", {})
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        _fail(path, "its metadata are not texts")
    return found


def _load_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The parsed header, where the data starts, and the size of the file, in bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8:
            raise CheckpointError(f"{path.name} is {size} bytes long: too short for a header")
        if length > MAX_HEADER_BYTES:
            _fail(
                path,
                f"its header claims {length} bytes; the format allows {MAX_HEADER_BYTES} (is it "
                "another kind of file under this name, a pickle or a web page?)",
            )
        if 8 + length > size:
            _fail(path, f"its header claims {length} bytes and the file has {size}: truncated?")
        text = file.read(length)
    try:
        header = strict_json.loads(text, max_bytes=MAX_HEADER_BYTES, max_depth=8)
    except strict_json.JsonProblem as problem:
        _fail(path, f"its header {problem}")
    if not isinstance(header, dict):
        _fail(path, "its header is not an object")
    return header, 8 + length, size


def _fail(path: Path, what: str) -> NoReturn:
    raise CheckpointError(f"{path.name} is not a sound safetensors file: {what}")


def _read_header(path: Path, header: dict[str, Any], data_start: int) -> dict[str, _Entry]:
    header.pop("__metadata__", None)
    if not 1 <= len(header) <= MAX_TENSORS:
        _fail(path, f"it names {len(header)} tensors; 1 to {MAX_TENSORS} are allowed")
    return {name: _read_entry(path, name, value, data_start) for name, value in header.items()}


def _read_entry(path: Path, name: str, value: Any, data_start: int) -> _Entry:
    if not 1 <= len(name) <= MAX_NAME_LENGTH or not name.isprintable():
        _fail(path, f"the tensor name {name[:80]!r} is empty, too long or not printable")
    if not isinstance(value, Mapping) or set(value) != {"dtype", "shape", "data_offsets"}:
        _fail(path, f"the entry of {name!r} is not dtype, shape and data_offsets")
    shape = _integers(path, name, "shape", value["shape"])
    offsets = _integers(path, name, "data_offsets", value["data_offsets"])
    if len(shape) > MAX_DIMENSIONS:
        _fail(path, f"{name!r} has {len(shape)} dimensions; {MAX_DIMENSIONS} are allowed")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        _fail(path, f"the data_offsets of {name!r} are {list(offsets)}, not a start and an end")
    dtype = value["dtype"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise UnsupportedModel(
            f"{path.name}: the tensor {name!r} is stored as {dtype!r}, which is not supported; "
            f"supported: {', '.join(_READABLE)}. Save the model in one of these"
        )
    nbytes = math.prod(shape) * _ITEM_BYTES[dtype]
    if nbytes == 0:
        _fail(path, f"{name!r} of shape {list(shape)} has no values")
    if offsets[1] - offsets[0] != nbytes:
        _fail(
            path,
            f"{name!r} of shape {list(shape)} needs {nbytes} bytes and has "
            f"{offsets[1] - offsets[0]}",
        )
    return _Entry(dtype, shape, data_start + offsets[0], nbytes)


def _integers(path: Path, name: str, what: str, value: Any) -> tuple[int, ...]:
    whole = isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
    if not whole:
        _fail(path, f"the {what} of {name!r} is not a list of whole numbers")
    return tuple(value)


def _check_tiling(path: Path, entries: Mapping[str, _Entry], start: int, size: int) -> None:
    """No hole, no overlap, nothing after the last tensor."""
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if entry.start != start:
            kind = "overlaps the tensor before it" if entry.start < start else "leaves a hole"
            _fail(path, f"{name!r} starts at byte {entry.start}, not {start}: it {kind}")
        start += entry.nbytes
    if start != size:
        _fail(path, f"its tensors end at byte {start} and the file at {size}: truncated, or more")


def _weight(path: Path, name: str, entry: _Entry, readable: Mapping[str, np.dtype[Any]]) -> Weight:
    def load() -> Dense:
        if entry.dtype not in readable:
            raise UnsupportedModel(
                f"{path.name}: the tensor {name!r} holds integers ({entry.dtype}), not weights"
            )
        try:
            mapped = np.memmap(path, readable[entry.dtype], "r", entry.start, entry.shape or 1)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path.name} changed while it was read ({error}); start again"
            ) from error
        values = _expand_bfloat16(mapped) if entry.dtype == "BF16" else mapped
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{path.name}: the tensor {name!r} holds NaN or infinite values; the checkpoint "
                "is damaged, fetch it again"
            )
        return Dense(values.reshape(entry.shape))

    return Weight(name, entry.shape, entry.dtype, load)


def _expand_bfloat16(values: NDArray[Any]) -> NDArray[np.float32]:
    """bfloat16 is the upper half of float32."""
    shifted: NDArray[np.uint32] = np.left_shift(values, 16, dtype=np.uint32)
    return shifted.view(np.float32)
