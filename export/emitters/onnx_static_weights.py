"""Weights of static ONNX graphs, in the forms that NPUs take (docs/decisions/020-static-onnx.md).

The graphs of all widths of a part use the same tensors: the first one puts them into the data file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from quickdraft.export.emitters.onnx_graph import GraphBuilder
from quickdraft.export.emitters.onnx_weights import WeightStore
from quickdraft.export.quantize import WHOLE_ROW, WeightFormat, store
from quickdraft.export.weights import Blocked, Weight

Forms = dict[str, tuple[int, int, bool]]
"""Of matrices in blocks, by name: bits of a code, columns of a block, whether there are offsets."""


def sized(value: ir.Value, *shape: int) -> ir.Value:
    """The value, marked as float32 of a shape."""
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
    return value


def width(x: ir.Value) -> int:
    """Length of the last axis."""
    return shape_of(x)[-1]


def shape_of(x: ir.Value) -> tuple[int, ...]:
    """Of a value that was marked with it."""
    assert x.shape is not None  # every value of these graphs is marked  # noqa: S101
    return x.shape.numpy()


class StaticWeights(WeightStore):
    """Weights of one graph. Values are [n, width] and marked with their shape.

    Codes of 4 bits, and blocks of GGUF files, are multiplied by MatMulNBits; int8 has a scale for
    each row of a matrix and is decoded in front of the product.
    """

    accuracy_level = 1  # float32: activations are rounded by nobody but the device

    def __init__(self, graph: GraphBuilder, fmt: WeightFormat, forms: Forms) -> None:
        """forms: shared by the graphs of a part, and filled by the first."""
        super().__init__(graph, fmt)
        self._blocks = forms
        self._by_row = fmt.bits == 8
        self._row_format = replace(fmt, groups=(WHOLE_ROW,))

    def gather(self, table: Weight, ids: ir.Value, keep_float: bool = False) -> ir.Value:
        """Rows of a table: ids [n] to [n, width]. keep_float: store it as float32."""
        graph, name = self._graph, table.name
        (n,), columns = shape_of(ids), table.shape[1]
        if keep_float:
            dense: ir.Value | None = graph.weight(name, table.dense())
        elif self._by_row:
            rows, scale = self._rounded(table)
            codes = graph.one("Cast", [self._rows(rows, ids)], {"to": ir.DataType.FLOAT})
            return sized(graph.one("Mul", [codes, self._rows(scale, ids, n, 1)]), n, columns)
        else:
            dense = self._load(table, "rows")
        if dense is not None:
            return sized(self._rows(dense, ids), n, columns)
        return self._decoded_rows(table, ids)

    def _decoded_rows(self, table: Weight, ids: ir.Value) -> ir.Value:
        """Rows of blocks, in plain arithmetic on the few that are wanted."""
        graph, name = self._graph, table.name
        bits, group, has_offset = self._blocks[name]
        (n,), columns = shape_of(ids), table.shape[1]
        codes = graph.one(
            "Cast", [self._rows(self._tensor(f"{name}.rows"), ids)], {"to": ir.DataType.FLOAT}
        )
        if bits == 4:  # two in a byte, the first one low
            high = graph.one("Floor", [graph.one("Mul", [codes, _number(graph, 1 / 16)])])
            low = graph.one("Sub", [codes, graph.one("Mul", [high, _number(graph, 16)])])
            shape = graph.constant([n, columns // 2, 1])
            pair = [graph.one("Reshape", [each, shape]) for each in (low, high)]
            codes = graph.one("Concat", pair, {"axis": 2})
        blocks = graph.one("Reshape", [codes, graph.constant([n, columns // group, group])])
        blocks = graph.one("Sub", [blocks, _number(graph, 1 << (bits - 1))])
        one_each = n, columns // group, 1
        scale = self._rows(self._tensor(f"{name}.scale"), ids, *one_each)
        blocks = graph.one("Mul", [blocks, scale])
        if has_offset:
            offset = graph.one("Gather", [self._tensor(f"{name}.offset"), ids], {"axis": 1})
            offset = graph.one("Transpose", [offset], {"perm": [1, 0]})
            offset = graph.one("Reshape", [offset, graph.constant(one_each)])
            blocks = graph.one("Add", [blocks, offset])
        return sized(graph.one("Reshape", [blocks, graph.constant([n, columns])]), n, columns)

    def _rows(self, table: ir.Value, ids: ir.Value, *shape: int) -> ir.Value:
        rows = self._graph.one("Gather", [table, ids], {"axis": 0})
        return self._graph.one("Reshape", [rows, self._graph.constant(shape)]) if shape else rows

    def linear(self, x: ir.Value, weight: Weight, bias: Weight | None) -> ir.Value:
        """x @ weight.T + bias."""
        return sized(super().linear(x, weight, bias), shape_of(x)[0], weight.shape[0])

    def linears(self, x: ir.Value, pairs: Sequence[tuple[Weight, Weight | None]]) -> list[ir.Value]:
        """Products of the same x, joined where the weights are stored alike."""
        found = super().linears(x, pairs)
        rows = shape_of(x)[0]
        return [
            sized(y, rows, weight.shape[0]) for y, (weight, _) in zip(found, pairs, strict=True)
        ]

    def _dense_product(self, x: ir.Value, matrix: ir.Value, bias: ir.Value | None) -> ir.Value:
        inputs = [x, matrix] if bias is None else [x, matrix, bias]
        return self._graph.one("Gemm", inputs, {"transB": 1})

    def _blocked_product(self, x: ir.Value, weight: Weight, bias: ir.Value | None) -> ir.Value:
        return sized(super()._blocked_product(x, weight, bias), shape_of(x)[0], weight.shape[0])

    def _keep_float(self, weight: Weight) -> bool:
        """Never: activations are floats, so that nothing is more sensitive than the rest."""
        del weight
        return False

    def _load(self, weight: Weight, form: str) -> ir.Value | None:
        name, graph = weight.name, self._graph
        if name in self._dense:
            return self._dense[name]
        if self._by_row:
            rows, scale = self._rounded(weight)
            self._dense[name] = graph.one("DequantizeLinear", [rows, scale], {"axis": 0})
            return self._dense[name]
        known = graph.find(name)  # dense, and put there by the graph of another width
        if known is None:
            if name in self._blocks and graph.find(f"{name}.{form}") is not None:
                return None
            return super()._load(weight, form)
        if known.dtype == ir.DataType.FLOAT16:
            known = graph.one("Cast", [known], {"to": ir.DataType.FLOAT})
        self._dense[name] = known
        return known

    def _rounded(self, weight: Weight) -> tuple[ir.Value, ir.Value]:
        """int8 codes [rows, columns], and a float32 scale for each row."""
        graph, name = self._graph, weight.name
        codes, scale = (graph.find(f"{name}.{kind}") for kind in ("int8", "scale"))
        if codes is not None and scale is not None:
            return codes, scale
        data = store(weight, self._row_format)
        assert isinstance(data, Blocked)  # a row divides into one block  # noqa: S101
        signed = (data.codes ^ np.uint8(128)).view(np.int8)  # two's complement
        return graph.weight(f"{name}.int8", signed), graph.weight(f"{name}.scale", data.scale[:, 0])


def _number(graph: GraphBuilder, value: float) -> ir.Value:
    return graph.constant(np.array(value, np.float32))
