"""Inputs, outputs and ops of an ONNX file, read without onnx and without its weights.

Field numbers are those of onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quickdraft.errors import BundleError
from quickdraft.onnx_references import Bytes, byte_fields, external_locations, number_fields

ELEMENTS = {1: "float32", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 16: "bfloat16"}
"""Types of elements by their number, those that a decoder's inputs and outputs have."""
_GRAPH, _NODE, _INPUT, _OUTPUT, _OP = 7, 1, 11, 12, 4


@dataclass(frozen=True)
class TensorType:
    """element: of ELEMENTS, else its number. shape: a number, or a name (perhaps empty) for each
    dimension."""

    element: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class OnnxFile:
    """inputs, outputs: by name. ops: types of the nodes outside of bodies. data: names of files
    with weights, from the folder of the file."""

    inputs: Mapping[str, TensorType]
    outputs: Mapping[str, TensorType]
    ops: frozenset[str]
    data: tuple[str, ...]


def read_onnx(path: Path) -> OnnxFile:
    """What a graph takes and gives.

    Raises:
        BundleError: it cannot be read, or is not ONNX.
    """
    where = str(path)
    try:
        if path.stat().st_size == 0:
            raise BundleError(f"{where} is empty, so it is not an ONNX file")
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return _read(data, where)
    except OSError as error:
        raise BundleError(f"{where} cannot be read: {error.strerror or error}") from error


def _read(data: Bytes, where: str) -> OnnxFile:
    inputs: dict[str, TensorType] = {}
    outputs: dict[str, TensorType] = {}
    ops = set()
    for model_field, start, end in byte_fields(data, 0, len(data), where):
        if model_field != _GRAPH:
            continue
        for field, first, last in byte_fields(data, start, end, where):
            if field in (_INPUT, _OUTPUT):
                name, kind = _value(data, first, last, where)
                (inputs if field == _INPUT else outputs)[name] = kind
            elif field == _NODE:
                ops |= {
                    _text(data, a, b)
                    for each, a, b in byte_fields(data, first, last, where)
                    if each == _OP
                }
    if not inputs or not outputs:
        raise BundleError(f"{where} has no inputs or no outputs, so it is not an ONNX model")
    found = external_locations(data, where)
    return OnnxFile(inputs, outputs, frozenset(ops), tuple(sorted(found)))


def _value(data: Bytes, start: int, end: int, where: str) -> tuple[str, TensorType]:
    """A ValueInfoProto."""
    name, element = "", "0"
    shape: tuple[int | str, ...] = ()
    for field, first, last in byte_fields(data, start, end, where):
        if field == 1:
            name = _text(data, first, last)
        elif field == 2:
            for kind, a, b in byte_fields(data, first, last, where):
                if kind == 1:
                    element, shape = _tensor(data, a, b, where)
    return name, TensorType(element, shape)


def _tensor(data: Bytes, start: int, end: int, where: str) -> tuple[str, tuple[int | str, ...]]:
    """A TypeProto.Tensor."""
    number = next((v for field, v in number_fields(data, start, end, where) if field == 1), 0)
    shape: list[int | str] = []
    for field, first, last in byte_fields(data, start, end, where):
        if field != 2:
            continue
        for dimension, a, b in byte_fields(data, first, last, where):
            if dimension == 1:
                shape.append(_dimension(data, a, b, where))
    return ELEMENTS.get(number, str(number)), tuple(shape)


def _dimension(data: Bytes, start: int, end: int, where: str) -> int | str:
    for field, value in number_fields(data, start, end, where):
        if field == 1:
            return value
    return next(
        (_text(data, a, b) for field, a, b in byte_fields(data, start, end, where) if field == 2),
        "",
    )


def _text(data: Bytes, start: int, end: int) -> str:
    return data[start:end].decode("utf-8", errors="replace")
