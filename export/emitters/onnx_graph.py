"""A thin builder over onnx-ir: nodes, small constants, and weights in one aligned data file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

CONTRIB = "com.microsoft"
OPSET = 23
IR_VERSION = 10
PAGE = 4096
"""Tensors that start on a page can be mapped by any runtime."""


class DataFile:
    """Weights appended one by one; nothing stays in memory. Equal bytes are stored once.

    alignment: bytes that every tensor's offset is a multiple of.
    """

    def __init__(self, path: Path, alignment: int = PAGE) -> None:
        self.path = path
        self._alignment = alignment
        self._stream: BinaryIO = path.open("wb")
        self._end = 0
        self._seen: dict[tuple[bytes, int], int] = {}

    def add(self, array: NDArray[Any]) -> tuple[int, int]:
        """Append an array; returns its offset and length in bytes."""
        data = memoryview(np.ascontiguousarray(array)).cast("B")  # type: ignore[arg-type]
        key = (hashlib.sha256(data).digest(), data.nbytes)
        if key not in self._seen:
            start = -(-self._end // self._alignment) * self._alignment
            self._stream.write(bytes(start - self._end))
            self._stream.write(data)
            self._end = start + data.nbytes
            self._seen[key] = start
        return self._seen[key], data.nbytes

    def flush(self) -> None:
        """Let others see what was added."""
        self._stream.flush()

    def close(self) -> None:
        """Finish the file."""
        self._stream.close()


class GraphBuilder:
    """Collects the nodes of one graph in order.

    placed: weights that other graphs of the same part have put into the data file, by name, which
    this one uses and adds to.
    """

    def __init__(self, data: DataFile, placed: dict[str, ir.ExternalTensor] | None = None) -> None:
        self._data = data
        self._placed = {} if placed is None else placed
        self._nodes: list[ir.Node] = []
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._initializers: dict[str, ir.Value] = {}
        self._count = 0

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        """A graph input; dimensions given by name are dynamic."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._inputs.append(value)
        return value

    def output(
        self, value: ir.Value, name: str, dtype: ir.DataType, shape: Sequence[int | str]
    ) -> None:
        """Make `value` the graph output `name`."""
        value.name = name
        value.type = ir.TensorType(dtype)
        value.shape = ir.Shape(shape)
        self._outputs.append(value)

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        domain: str = "",
        outputs: int = 1,
    ) -> list[ir.Value]:
        """Append a node and return its outputs."""
        self._count += 1
        name = f"{op_type}_{self._count}"
        node = ir.node(
            op_type,
            list(inputs),
            dict(attributes or {}),
            domain=domain,
            outputs=[ir.Value(name=f"{name}.{i}") for i in range(outputs)],
            name=name,
        )
        self._nodes.append(node)
        return list(node.outputs)

    def one(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        domain: str = "",
    ) -> ir.Value:
        """Append a node with one output."""
        return self.node(op_type, inputs, attributes, domain=domain)[0]

    def constant(self, array: NDArray[Any] | Sequence[int]) -> ir.Value:
        """A small tensor kept inside the graph file; equal ones are shared."""
        value = np.asarray(array, np.int64) if not isinstance(array, np.ndarray) else array
        digest = hashlib.sha256(value.tobytes()).hexdigest()[:16]
        shape = "x".join(map(str, value.shape))
        name = f"constant.{value.dtype}.{shape}.{digest}"
        if name not in self._initializers:
            self._register(name, ir.tensor(value, name=name))
        return self._initializers[name]

    def weight(self, name: str, array: NDArray[Any]) -> ir.Value:
        """A tensor in the data file; a name that exists already is reused."""
        if self.find(name) is None:
            offset, length = self._data.add(array)
            self._placed[name] = ir.ExternalTensor(
                location=self._data.path.name,
                offset=offset,
                length=length,
                dtype=ir.DataType.from_numpy(array.dtype),
                shape=ir.Shape(array.shape),
                name=name,
                base_dir=str(self._data.path.parent),
            )
            self._register(name, self._placed[name])
        return self._initializers[name]

    def find(self, name: str) -> ir.Value | None:
        """The weight of that name, if there is one already."""
        if name not in self._initializers and name in self._placed:
            self._register(name, self._placed[name])
        return self._initializers.get(name)

    def _register(self, name: str, tensor: ir.TensorProtocol) -> None:
        self._initializers[name] = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )

    def save(self, path: Path, name: str, domain: str = CONTRIB, opset: int = OPSET) -> None:
        """Write the graph beside its data file. domain: of the ops that are not standard. opset:
        the version of those that are."""
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports={"": opset, domain: 1},
            name=name,
        )
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="quickdraft")
        ir.save(model, path)
