"""The header of a GGUF file, read under hard limits.

Every count and length is compared with the bytes that are left before anything is allocated or
looped over, so the time and memory of a parse are bounded by the limits below, whatever the file
says. Format: versions 2 and 3, little endian, as in ggml's `docs/gguf.md`.

Memory: strings dominate. MAX_ELEMENTS strings of at most MAX_METADATA_BYTES together cost at most
`PARSE_MEMORY_BYTES` in CPython (about 65 bytes an object and 4 bytes a character).
"""

from __future__ import annotations

import math
import mmap
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import CheckpointError, UnsupportedModel

MAGIC = b"GGUF"
MAX_METADATA_BYTES = 32 << 20
MAX_PAIRS = 10_000
MAX_TENSORS = 20_000
MAX_ELEMENTS = 1 << 21
MAX_KEY_BYTES = 1_024
MAX_NAME_BYTES = 63
MAX_STRING_BYTES = 4 << 20
MAX_DIMENSIONS = 4
MIN_ALIGNMENT, DEFAULT_ALIGNMENT, MAX_ALIGNMENT = 8, 32, 64 << 10
PARSE_MEMORY_BYTES = 320 << 20

Scalar = bool | int | float | str
Value = Scalar | tuple[str, ...] | NDArray[Any]
Buffer = bytes | mmap.mmap

_STRING, _ARRAY = 8, 9
_SCALARS: Mapping[int, str] = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "|b1",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip

TENSOR_TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
}  # fmt: skip
"""Type number to (name, values per block, bytes per block)."""

_UNSUPPORTED_TYPES: Mapping[int, str] = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16",
    26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
    40: "NVFP4", 41: "Q1_0",
}  # fmt: skip

_LOOKS_LIKE: tuple[tuple[bytes, str], ...] = (
    (b"<", "an HTML or XML page (a download that returned an error page?)"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive (a PyTorch checkpoint or a package?)"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"FUGG", "a byte-swapped (big-endian) GGUF file"),
    (b"lmgg", "a GGML file, the format before GGUF; convert it with llama.cpp"),
    (b"fmgg", "a GGML file, the format before GGUF; convert it with llama.cpp"),
    (b"tjgg", "a GGML file, the format before GGUF; convert it with llama.cpp"),
    (b"{", "a JSON document"),
)


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies. shape: outputs first. offset: bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """A checked header: every tensor lies inside the file, aligned, apart from all others.

    metadata: numbers, booleans and text as Python values; arrays of text as tuples, arrays of
    numbers as NumPy arrays of the type in the file.
    """

    name: str
    version: int
    alignment: int
    metadata: Mapping[str, Value]
    tensors: Mapping[str, TensorInfo]


def open_file(path: Path) -> mmap.mmap:
    """Map a regular file for reading.

    Raises:
        CheckpointError: no such file, a folder, a pipe or device, an empty or unreadable file.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise CheckpointError(f"{path}: this is a folder; a .gguf file is expected")
        # Opening a named pipe would wait for a writer for ever.
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: not a regular file; a .gguf file is expected")
        if status.st_size == 0:
            raise CheckpointError(f"{path}: the file is empty; download it again")
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def parse_header(data: Buffer, name: str) -> Header:
    """Parse and check the header at the start of `data`, the whole file.

    Raises:
        CheckpointError: truncated, malformed or beyond a limit; names the file and the field.
        UnsupportedModel: a version or tensor type that exists but is not implemented.
    """
    reader = _Reader(data, name)
    version, tensor_count, pair_count = _prologue(reader)
    metadata = _metadata(reader, pair_count)
    alignment = _alignment(reader, metadata)
    rows = [_tensor_row(reader, index) for index in range(tensor_count)]
    tensors = _place(reader, rows, alignment)
    return Header(name, version, alignment, metadata, tensors)


class _Reader:
    """A cursor that refuses to pass the end of the file or of the metadata budget."""

    def __init__(self, data: Buffer, name: str) -> None:
        self.data = data
        self.name = name
        self.at = 0
        self.size = len(data)
        self.end = min(self.size, MAX_METADATA_BYTES)
        self.elements = 0

    def fail(self, problem: str) -> NoReturn:
        raise CheckpointError(f"{self.name}: {problem}")

    def need(self, count: int, field: str) -> None:
        """Check that `count` bytes are left."""
        if count <= self.end - self.at:
            return
        if self.end < self.size:
            self.fail(f"{field}: the metadata exceeds the limit of {MAX_METADATA_BYTES} bytes")
        self.fail(
            f"{field} needs {count} bytes at offset {self.at}, but the file ends at {self.size}: "
            "it is truncated or damaged; download it again"
        )

    def number(self, code: str, field: str) -> Any:
        size = struct.calcsize(code)
        self.need(size, field)
        (value,) = struct.unpack_from(code, self.data, self.at)
        self.at += size
        return value

    def text(self, field: str, limit: int) -> str:
        length = self.number("<Q", f"the length of {field}")
        if length > limit:
            self.fail(f"{field} claims {length} bytes; the limit is {limit}")
        self.need(length, field)
        raw = self.data[self.at : self.at + length]
        self.at += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{field} is not valid UTF-8")

    def texts(self, count: int, field: str) -> tuple[str, ...]:
        """`count` strings; the loop of the big token lists, kept free of calls."""
        data, at, end, unpack = self.data, self.at, self.end, struct.Struct("<Q").unpack_from
        values = []
        for index in range(count):
            if end - at < 8:
                self.at = at
                self.need(8, f"item {index} of {field}")
            (length,) = unpack(data, at)
            at += 8
            if length > end - at:
                self.at = at
                self.need(length, f"item {index} of {field}")
            try:
                values.append(data[at : at + length].decode("utf-8"))
            except UnicodeDecodeError:
                self.fail(f"item {index} of {field} is not valid UTF-8")
            at += length
        self.at = at
        return tuple(values)


def _prologue(reader: _Reader) -> tuple[int, int, int]:
    """Magic, version and counts: (version, tensors, key/value pairs)."""
    start = bytes(reader.data[:64])
    if start[:4] != MAGIC:
        reader.fail(f"not a GGUF file; it looks like {_what_it_looks_like(start)}")
    reader.at = 4
    version = reader.number("<I", "the version")
    if version and version & 0xFFFF == 0:
        raise UnsupportedModel(
            f"{reader.name}: a big-endian GGUF file; convert it to little-endian"
        )
    if version not in (2, 3):
        raise UnsupportedModel(
            f"{reader.name}: GGUF version {version}; versions 2 and 3 are supported, so convert "
            "the model again or update quickdraft"
        )
    tensors = reader.number("<Q", "the tensor count")
    pairs = reader.number("<Q", "the key/value count")
    # The smallest key/value pair has 13 bytes and the smallest tensor row 32.
    for count, limit, least, what in (
        (tensors, MAX_TENSORS, 32, "tensor"),
        (pairs, MAX_PAIRS, 13, "key/value"),
    ):
        if count > limit:
            reader.fail(f"the {what} count is {count}; the limit is {limit}")
        reader.need(count * least, f"the {what} count of {count}")
    return version, tensors, pairs


def _what_it_looks_like(start: bytes) -> str:
    text = start.lstrip()
    for prefix, what in _LOOKS_LIKE:
        if start.startswith(prefix) or (prefix in (b"<", b"{") and text.startswith(prefix)):
            return what
    if start[8:9] == b"{" and len(start) > 9:
        return "a safetensors file; give the folder that holds it and its config.json"
    if not start.strip(b"\0"):
        return "a file of zeros (an interrupted download?)"
    return f"something else (it starts with {start[:4].hex(' ')})"


def _metadata(reader: _Reader, count: int) -> dict[str, Value]:
    pairs: dict[str, Value] = {}
    for index in range(count):
        key = reader.text(f"key {index}", MAX_KEY_BYTES)
        if not key or not key.isprintable():
            reader.fail(f"key {index} is empty or holds control characters")
        if key in pairs:
            reader.fail(f"the key {key!r} appears twice")
        pairs[key] = _value(reader, key)
    return pairs


def _value(reader: _Reader, key: str) -> Value:
    field = f"the value of {key!r}"
    kind = reader.number("<I", f"the type of {key!r}")
    if kind == _STRING:
        return reader.text(field, MAX_STRING_BYTES)
    if kind == _ARRAY:
        return _array(reader, key)
    if kind not in _SCALARS:
        reader.fail(f"{key!r} has the unknown type {kind}")
    array = _numbers(reader, kind, 1, field)
    value: Scalar = array[0].item()
    return value


def _array(reader: _Reader, key: str) -> tuple[str, ...] | NDArray[Any]:
    kind = reader.number("<I", f"the element type of {key!r}")
    count = reader.number("<Q", f"the length of {key!r}")
    if kind == _ARRAY:
        reader.fail(f"{key!r} is an array of arrays, which no model uses")
    if kind != _STRING and kind not in _SCALARS:
        reader.fail(f"{key!r} is an array of the unknown type {kind}")
    reader.elements += count
    if reader.elements > MAX_ELEMENTS:
        reader.fail(f"{key!r} has {count} elements; the limit for all arrays is {MAX_ELEMENTS}")
    if kind == _STRING:
        reader.need(count * 8, f"the array {key!r} of {count} strings")
        return reader.texts(count, f"the array {key!r}")
    return _numbers(reader, kind, count, f"the array {key!r} of {count} values")


def _numbers(reader: _Reader, kind: int, count: int, field: str) -> NDArray[Any]:
    dtype = np.dtype(_SCALARS[kind])
    nbytes = count * dtype.itemsize
    reader.need(nbytes, field)
    raw = reader.data[reader.at : reader.at + nbytes]
    reader.at += nbytes
    if dtype.kind == "b" and raw.strip(b"\0\1"):
        reader.fail(f"{field}: a boolean is neither 0 nor 1")
    return np.frombuffer(raw, dtype)


def _alignment(reader: _Reader, metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(value, int) or isinstance(value, bool):
        reader.fail("general.alignment is not an integer")
    if not MIN_ALIGNMENT <= value <= MAX_ALIGNMENT or value & (value - 1):
        reader.fail(
            f"general.alignment is {value}; it must be a power of two from {MIN_ALIGNMENT} to "
            f"{MAX_ALIGNMENT}"
        )
    return value


def _tensor_row(reader: _Reader, index: int) -> TensorInfo:
    """One row of the tensor table, its offset still relative to the data section."""
    name = reader.text(f"the name of tensor {index}", MAX_NAME_BYTES)
    if not name or not name.isprintable():
        reader.fail(f"the name of tensor {index} is empty or holds control characters")
    dimensions = reader.number("<I", f"the dimension count of tensor {name!r}")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        reader.fail(f"tensor {name!r} has {dimensions} dimensions; 1 to {MAX_DIMENSIONS} exist")
    sizes = [reader.number("<q", f"the shape of tensor {name!r}") for _ in range(dimensions)]
    if min(sizes) < 1:
        reader.fail(f"tensor {name!r} has the shape {sizes}; every size must be positive")
    kind = reader.number("<I", f"the type of tensor {name!r}")
    offset = reader.number("<Q", f"the offset of tensor {name!r}")
    if kind in _UNSUPPORTED_TYPES:
        raise UnsupportedModel(
            f"{reader.name}: tensor {name!r} is stored as {_UNSUPPORTED_TYPES[kind]}; supported "
            f"are {', '.join(t[0] for t in TENSOR_TYPES.values())}"
        )
    if kind not in TENSOR_TYPES:
        reader.fail(f"tensor {name!r} has the unknown type {kind}")
    type_name, block, block_bytes = TENSOR_TYPES[kind]
    if sizes[0] % block:
        reader.fail(
            f"tensor {name!r} has rows of {sizes[0]} values, not a multiple of the {block} of "
            f"a {type_name} block"
        )
    # Python integers do not wrap, so a hostile product is simply larger than the file.
    nbytes = math.prod(sizes) // block * block_bytes
    if nbytes > reader.size:
        reader.fail(
            f"tensor {name!r} of shape {sizes} needs {nbytes} bytes; the file has {reader.size}: "
            "it is truncated or damaged; download it again"
        )
    return TensorInfo(name, tuple(reversed(sizes)), type_name, offset, nbytes)


def _place(reader: _Reader, rows: list[TensorInfo], alignment: int) -> dict[str, TensorInfo]:
    """Rows with offsets from the start of the file, in file order, checked against each other."""
    start = -(-reader.at // alignment) * alignment
    placed: dict[str, TensorInfo] = {}
    end, previous = start, ""
    for row in sorted(rows, key=lambda row: row.offset):
        if row.name in placed:
            reader.fail(f"the tensor {row.name!r} appears twice")
        if row.offset % alignment:
            reader.fail(
                f"tensor {row.name!r} has the offset {row.offset}, not a multiple of the "
                f"alignment {alignment}"
            )
        offset = start + row.offset
        if offset < end:
            reader.fail(f"tensor {row.name!r} overlaps tensor {previous!r}")
        end, previous = offset + row.nbytes, row.name
        if end > reader.size:
            reader.fail(
                f"tensor {row.name!r} ends at byte {end}, but the file ends at {reader.size}: "
                "it is truncated; download it again"
            )
        placed[row.name] = TensorInfo(row.name, row.shape, row.type_name, offset, row.nbytes)
    return placed
