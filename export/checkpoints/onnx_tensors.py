"""Weights inside an ONNX graph: its tensors, and which of its nodes reads which.

Reads the file itself, without onnx, one tensor at a time. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import BundleError, CheckpointError, UnsupportedModel
from quickdraft.export.checkpoints.gguf_header import open_file
from quickdraft.onnx_references import byte_fields, number_fields, varint

MAX_NODES = 100_000
MAX_TENSORS = 20_000
MAX_DIMENSIONS = 8
_GRAPH = 7
_NODE, _TENSOR = 1, 5
_DIMS, _DATA_TYPE, _FLOATS, _INTS, _NAME, _RAW = 1, 2, 4, 5, 8, 9
_INPUT, _NODE_NAME, _OP = 1, 3, 4
_FLOAT = 1
_DTYPES = {1: "<f4", 2: "u1", 3: "i1", 7: "<i8", 10: "<f2"}


@dataclass(frozen=True)
class Node:
    """An op of the graph: its type, its name and the names of what it reads."""

    op: str
    name: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """An open file. tensors: by name, as views of the file; those of other types, or that are kept
    elsewhere, are left out."""

    path: Path
    nodes: tuple[Node, ...]
    tensors: Mapping[str, NDArray[Any]]

    def values(self, name: str) -> NDArray[Any]:
        """A tensor.

        Raises:
            UnsupportedModel: the graph stores no such tensor.
        """
        if name not in self.tensors:
            raise UnsupportedModel(f"{self.path} stores no tensor {name[:120]!r}")
        return self.tensors[name]


def read_graph(path: Path) -> Graph:
    """Read what a graph consists of; tensors stay on disk.

    Raises:
        CheckpointError: it cannot be read, is damaged, or is not ONNX.
    """
    data, where = open_file(path), str(path)
    nodes: list[Node] = []
    tensors: dict[str, NDArray[Any]] = {}
    try:
        for field, start, end in byte_fields(data, 0, len(data), where):
            if field != _GRAPH:
                continue
            for part, first, last in byte_fields(data, start, end, where):
                if part == _NODE:
                    nodes.append(_node(data, first, last, where))
                elif part == _TENSOR:
                    name, tensor = _tensor(data, first, last, where)
                    if tensor is not None:
                        tensors[name] = tensor
                if len(nodes) > MAX_NODES or len(tensors) > MAX_TENSORS:
                    raise CheckpointError(f"{path} has more nodes or tensors than are read")
    except BundleError as error:
        raise CheckpointError(str(error)) from None
    if not nodes:
        raise CheckpointError(f"{path} is not an ONNX file: it has no graph")
    return Graph(path, tuple(nodes), tensors)


def _text(data: mmap.mmap, start: int, end: int) -> str:
    return data[start : min(end, start + 1_024)].decode("utf-8", errors="replace")


def _node(data: mmap.mmap, start: int, end: int, where: str) -> Node:
    op = name = ""
    inputs = []
    for field, first, last in byte_fields(data, start, end, where):
        if field == _INPUT:
            inputs.append(_text(data, first, last))
        elif field == _NODE_NAME:
            name = _text(data, first, last)
        elif field == _OP:
            op = _text(data, first, last)
    return Node(op, name, tuple(inputs))


def _tensor(data: mmap.mmap, start: int, end: int, where: str) -> tuple[str, NDArray[Any] | None]:
    """A tensor and its name; None where its values are elsewhere or of a type that is not read."""
    kind, shape, packed = 0, [], []
    for field, value in number_fields(data, start, end, where):
        if field == _DIMS:
            shape.append(value)
        elif field == _DATA_TYPE:
            kind = value
        elif field == _INTS:
            packed.append(value)
    name, place = "", None
    for field, first, last in byte_fields(data, start, end, where):
        if field == _NAME:
            name = _text(data, first, last)
        elif field == _DIMS:
            shape += _numbers(data, first, last, where)
        elif field == _INTS:
            packed += _numbers(data, first, last, where)
        elif field == _RAW or (field == _FLOATS and kind == _FLOAT):
            place = first, last - first
    if kind not in _DTYPES or len(shape) > MAX_DIMENSIONS or not (place or packed):
        return name, None
    dtype, count = np.dtype(_DTYPES[kind]), math.prod(shape)
    if place is None:
        # Integers are also kept as varints, negative ones as if of 64 bits.
        values = np.array(packed, np.uint64).astype(dtype)
    else:
        values = np.frombuffer(data, np.uint8, place[1], place[0])
        values = values.view(dtype) if place[1] % dtype.itemsize == 0 else values[:0]
    if values.size != count:
        raise CheckpointError(
            f"{where} is damaged: the tensor {name[:120]!r} does not have the shape {shape}"
        )
    return name, values.reshape(shape)


def _numbers(data: mmap.mmap, start: int, end: int, where: str) -> list[int]:
    """A field of packed numbers."""
    numbers = []
    while start < end:
        value, start = varint(data, start, end, where)
        numbers.append(value)
    return numbers
