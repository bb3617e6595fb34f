"""Weights as ONNX tensors: dense, or blocks in the layout of MatMulNBits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quickdraft.export.emitters.base import refuse_groups
from quickdraft.export.emitters.onnx_graph import CONTRIB, GraphBuilder
from quickdraft.export.quantize import WeightFormat, store
from quickdraft.export.weights import Blocked, Dense, Floats, Weight, concat_rows, join_biases

BLOCKS = (16, 32, 64, 128, 256)
"""Values that share a scale in MatMulNBits."""


@dataclass(frozen=True)
class NBits:
    """value = scale * (code - 2**(bits-1)) + offset, the offset None where it is zero.

    packed: uint8 [rows, groups, group * bits / 8], low bits first. scale, offset: float32
    [rows, groups].
    """

    packed: NDArray[np.uint8]
    scale: Floats
    offset: Floats | None


def to_nbits(blocked: Blocked) -> NBits:
    """The same values in MatMulNBits' layout, without requantising.

    Its zero point is fixed in the middle of the range here. Codes are moved there where they
    fit; else the distance, like a block's minimum, becomes an offset per block that a small
    float product adds (the op's own float zero points are exact too, but 50 times slower).
    """
    shift = (1 << (blocked.bits - 1)) - blocked.zero
    codes, offset = blocked.codes, blocked.minimum
    low, high = int(codes.min()) + shift, int(codes.max()) + shift
    if low >= 0 and high < 1 << blocked.bits:
        codes = codes + np.uint8(shift) if shift else codes
    else:
        moved = blocked.scale * np.float32(shift)
        offset = moved if offset is None else moved + offset
    rows, groups = blocked.scale.shape
    packed = _pack_nibbles(codes) if blocked.bits == 4 else np.ascontiguousarray(codes)
    if offset is not None and not offset.any():
        offset = None
    return NBits(
        packed.reshape(rows, groups, -1), np.ascontiguousarray(blocked.scale, np.float32), offset
    )


def _pack_nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    high: NDArray[np.uint8] = np.left_shift(codes[:, 1::2], 4)
    return codes[:, 0::2] | high


class WeightStore:
    """Puts each weight into the graph once, in the wanted format, and emits its products."""

    accuracy_level = 4
    """Activations in int8 per block of a row: the fast path, and one whose rows are independent."""

    def __init__(self, graph: GraphBuilder, fmt: WeightFormat) -> None:
        """Raises:
        OptionError: MatMulNBits has no such blocks.
        """
        refuse_groups(fmt, "an ONNX graph", BLOCKS)
        self._graph = graph
        self._format = fmt
        self._blocks: dict[str, tuple[int, int, bool]] = {}
        self._sums: dict[tuple[int, int], ir.Value] = {}
        self._dense: dict[str, ir.Value] = {}

    def vector(self, weight: Weight) -> ir.Value:
        """A norm scale or bias, float32."""
        known = self._graph.find(weight.name)
        if known is not None:
            return known
        return self._graph.weight(weight.name, weight.dense().reshape(-1))

    def gather(self, table: Weight, ids: ir.Value, keep_float: bool = False) -> ir.Value:
        """Rows of a table: [1, n] ids to [1, n, width]. keep_float: store it as float32."""
        graph = self._graph
        if keep_float and table.name not in self._dense:
            self._dense[table.name] = graph.weight(table.name, table.dense())
        dense = self._load(table, "rows")
        if dense is not None:
            return graph.one("Gather", [dense, ids], {"axis": 0})
        bits, group, has_offset = self._blocks[table.name]
        rows = self._tensor(f"{table.name}.rows")
        scale = self._tensor(f"{table.name}.scale")
        attributes = {
            "bits": bits,
            "block_size": group,
            "gather_axis": 0,
            "quantize_axis": 1,
        }
        values = graph.one("GatherBlockQuantized", [rows, ids, scale], attributes, domain=CONTRIB)
        if not has_offset:
            return values
        columns = self._tensor(f"{table.name}.offset")
        offset = graph.one("Transpose", [columns], {"perm": [1, 0]})
        chosen = graph.one("Gather", [offset, ids], {"axis": 0})
        chosen = graph.one("Unsqueeze", [chosen, graph.constant([3])])
        parts = graph.one("Reshape", [values, graph.constant([0, 0, -1, group])])
        moved = graph.one("Add", [parts, chosen])
        return graph.one("Reshape", [moved, graph.constant([0, 0, -1])])

    def linear(self, x: ir.Value, weight: Weight, bias: Weight | None) -> ir.Value:
        """x @ weight.T + bias."""
        dense = self._load(weight, "codes")
        vector = self.vector(bias) if bias else None
        if dense is not None:
            return self._dense_product(x, dense, vector)
        y = self._blocked_product(x, weight, vector)
        _, group, has_offset = self._blocks[weight.name]
        if not has_offset:
            return y
        sums = self._group_sums(x, weight.shape[1] // group, group)
        offset = self._tensor(f"{weight.name}.offset")
        return self._graph.one("Add", [y, self._graph.one("MatMul", [sums, offset])])

    def _dense_product(self, x: ir.Value, matrix: ir.Value, bias: ir.Value | None) -> ir.Value:
        y = self._graph.one("FusedMatMul", [x, matrix], {"transB": 1}, domain=CONTRIB)
        return self._graph.one("Add", [y, bias]) if bias is not None else y

    def _blocked_product(self, x: ir.Value, weight: Weight, bias: ir.Value | None) -> ir.Value:
        bits, group, _ = self._blocks[weight.name]
        attributes = {
            "K": weight.shape[1],
            "N": weight.shape[0],
            "bits": bits,
            "block_size": group,
            "accuracy_level": self.accuracy_level,
        }
        codes = self._tensor(f"{weight.name}.codes")
        scale = self._tensor(f"{weight.name}.scale")
        inputs = [x, codes, scale] if bias is None else [x, codes, scale, None, None, bias]
        return self._graph.one("MatMulNBits", inputs, attributes, domain=CONTRIB)

    def linears(self, x: ir.Value, pairs: Sequence[tuple[Weight, Weight | None]]) -> list[ir.Value]:
        """Products of the same x, joined where the weights are stored alike.

        One product of many rows costs less than several of few.
        """
        alike: dict[str, list[int]] = {}
        for index, (weight, _) in enumerate(pairs):
            form = weight.stored_as if self._format.keep else ""
            form += "float" if self._keep_float(weight) else ""
            alike.setdefault(form, []).append(index)
        results: dict[int, ir.Value] = {}
        for indices in alike.values():
            if len(indices) == 1:
                weight, bias = pairs[indices[0]]
                results[indices[0]] = self.linear(x, weight, bias)
                continue
            joined = concat_rows([pairs[i][0] for i in indices])
            y = self.linear(x, joined, join_biases([pairs[i] for i in indices]))
            sizes = self._graph.constant([pairs[i][0].shape[0] for i in indices])
            outputs = self._graph.node("Split", [y, sizes], {"axis": -1}, outputs=len(indices))
            results.update(zip(indices, outputs, strict=True))
        return [results[index] for index in range(len(pairs))]

    def _group_sums(self, x: ir.Value, groups: int, group: int) -> ir.Value:
        """Sums of each group of columns, [n, groups], shared by all products of the same x."""
        key = (id(x), group)
        if key not in self._sums:
            graph = self._graph
            parts = graph.one("Reshape", [x, graph.constant([-1, groups, group])])
            inputs = [parts, graph.constant([2])]
            self._sums[key] = graph.one("ReduceSum", inputs, {"keepdims": 0})
        return self._sums[key]

    def _tensor(self, name: str) -> ir.Value:
        value = self._graph.find(name)
        if value is None:
            raise KeyError(name)
        return value

    def _load(self, weight: Weight, form: str) -> ir.Value | None:
        """Register a matrix as a product (`codes`) or a table (`rows`) needs it.

        Returns the dense tensor, or None for blocks. Both forms of one matrix are the same bytes
        in two shapes, and the data file stores them once.
        """
        name = weight.name
        if name in self._dense:
            return self._dense[name]
        if self._graph.find(f"{name}.{form}") is not None:
            return None
        data = Dense(weight.dense()) if self._keep_float(weight) else store(weight, self._format)
        if isinstance(data, Blocked):
            self._register_blocks(name, form, data)
            return None
        value = self._graph.weight(name, np.ascontiguousarray(data.values))
        if data.values.dtype == np.float16:
            value = self._graph.one("Cast", [value], {"to": ir.DataType.FLOAT})
        self._dense[name] = value
        return value

    def _keep_float(self, weight: Weight) -> bool:
        """Whether a sensitive matrix is small enough to multiply in floats.

        With grouped heads the value projection is a few percent of the weights, and int8 rounding
        of its input is the costliest per byte (docs/decisions/003-float-value-projections.md).
        """
        small = 3 * weight.shape[0] <= weight.shape[-1]
        return self._format.float_values and weight.sensitive and small

    def _register_blocks(self, name: str, form: str, data: Blocked) -> None:
        blocks = to_nbits(data)
        rows = len(blocks.packed)
        shaped = blocks.packed if form == "codes" else blocks.packed.reshape(rows, -1)
        self._graph.weight(f"{name}.{form}", shaped)
        self._graph.weight(f"{name}.scale", blocks.scale)
        if blocks.offset is not None:
            self._graph.weight(f"{name}.offset", np.ascontiguousarray(blocks.offset.T))
        self._blocks[name] = (data.bits, data.group, blocks.offset is not None)
