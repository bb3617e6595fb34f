"""Which data files an ONNX file refers to, read without onnx and without trusting it.

ONNX Runtime opens whatever file of the folder the graph names. A file that the manifest does not
list was never hashed, so such a reference must be found before the engine sees the graph. Field
numbers are those of onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

from quickdraft.errors import BundleError

MAX_DEPTH = 64

# Message kinds by field number: the ways from a model to its tensors.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse tensor",
        23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external data"},
    "external data": {},
}
Bytes = bytes | mmap.mmap

_KEY, _VALUE = 1, 2
# Others have been used to set attributes of the objects that readers make (CVE-2026-34445).
_KNOWN_KEYS = frozenset({b"location", b"offset", b"length", b"checksum"})


def external_locations(data: Bytes, where: str) -> set[str]:
    """The `location` entries of all tensors of a serialised ModelProto.

    Raises:
        BundleError: it is cut off, malformed, nested deeper than 64 messages, or describes data
            in a way that ONNX does not know.
    """
    found: set[str] = set()
    waiting = [("model", 0, len(data), 0)]
    while waiting:
        kind, start, end, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise BundleError(f"{where} is nested deeper than {MAX_DEPTH} levels")
        key = value = b""
        for field, first, last in byte_fields(data, start, end, where):
            child = _CHILDREN[kind].get(field)
            if child is not None:
                waiting.append((child, first, last, depth + 1))
            elif kind == "external data" and field == _KEY:
                key = data[first:last]
            elif kind == "external data" and field == _VALUE:
                value = data[first:last]
        if kind == "external data" and key not in _KNOWN_KEYS:
            raise BundleError(f"{where} describes external data by the unknown key {key[:40]!r}")
        if key == b"location":
            found.add(_text(value, where))
    return found


def _text(value: bytes, where: str) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise BundleError(f"{where} refers to a file whose name is not UTF-8") from None


def byte_fields(data: Bytes, start: int, end: int, where: str) -> Iterator[tuple[int, int, int]]:
    """Fields that hold bytes, as (number, first byte, one past the last); others are skipped.

    Raises:
        BundleError: it is cut off or malformed.
    """
    at = start
    while at < end:
        tag, at = varint(data, at, end, where)
        kind = tag & 7
        if kind == 2:
            size, at = varint(data, at, end, where)
            if size > end - at:
                raise BundleError(f"{where} is cut off or damaged at byte {at}")
            yield tag >> 3, at, at + size
            at += size
        elif kind == 0:
            _, at = varint(data, at, end, where)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise BundleError(f"{where} is not an ONNX file, or damaged at byte {at}")
    if at != end:
        raise BundleError(f"{where} is cut off or damaged at byte {end}")


def number_fields(data: Bytes, start: int, end: int, where: str) -> Iterator[tuple[int, int]]:
    """Fields that hold whole numbers, as (number of the field, value); others are skipped.

    Raises:
        BundleError: it is cut off or malformed.
    """
    at = start
    while at < end:
        tag, at = varint(data, at, end, where)
        if tag & 7 == 0:
            value, at = varint(data, at, end, where)
            yield tag >> 3, value
        else:
            size, at = varint(data, at, end, where) if tag & 7 == 2 else (0, at)
            at += size if tag & 7 == 2 else 8 if tag & 7 == 1 else 4


def varint(data: Bytes, at: int, end: int, where: str) -> tuple[int, int]:
    """A number of variable length, and where it ends. Raises as `byte_fields`."""
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise BundleError(f"{where} is cut off or damaged at byte {at}")
