"""Writing values as nodes of the hotpath graph, each taking in what its kernel can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from quickdraft.export.emitters.hotpath_values import (
    Columns,
    Embedded,
    Lazy,
    Normed,
    NormSpec,
    Product,
    Stacked,
    Sum,
    Taken,
    Value,
    unsupported,
)
from quickdraft.export.emitters.hotpath_weights import PackedStore
from quickdraft.export.emitters.onnx_graph import GraphBuilder
from quickdraft.export.ops import Activation, Rope
from quickdraft.export.weights import Weight

DOMAIN = "quickdraft"


class HotpathWriter:
    """Writes each lazy value once, when it is asked for."""

    def __init__(self, graph: GraphBuilder, store: PackedStore) -> None:
        self._graph = graph
        self._store = store
        self._ropes: dict[Rope, ir.Value] = {}

    def value(self, x: Value) -> ir.Value:
        """The value in the graph."""
        if isinstance(x, ir.Value):
            return x
        if x.done is None:
            x.done = self._write(x)
        return x.done

    def columns(self, x: Value) -> tuple[ir.Value, int]:
        """The value that holds x, and its first column there."""
        if isinstance(x, Columns) and x.done is None:
            return self.value(x.product), x.offset
        return self.value(x), 0

    def take_early(self, x: Value, rows: ir.Value) -> Value | None:
        """Rows of x, taken where its last products begin, so that these are of no more rows; None
        where x is no product or sum of them."""
        if isinstance(x, ir.Value) or x.done is not None:
            return None
        taken: dict[int, Value] = {}

        def take(value: Value) -> Value:
            if id(value) not in taken:
                taken[id(value)] = spread(value)
            return taken[id(value)]

        def spread(value: Value) -> Value:
            match value:
                case Product(done=None) | Normed(done=None):
                    return replace(value, x=take(value.x))
                case Columns(done=None, product=Product(done=None)):
                    product = take(value.product)
                    if isinstance(product, Product):
                        return replace(value, product=product)
                case Sum(done=None):
                    return replace(value, terms=tuple(map(take, value.terms)))
            return self._graph.one("Gather", [self.value(value), rows], {"axis": 0})

        return take(x) if isinstance(x, Product | Normed | Sum) else None

    def activate(self, x: ir.Value, kind: Activation) -> ir.Value:
        """An activation by itself."""
        match kind:
            case "silu":
                return self._graph.one("Mul", [x, self._graph.one("Sigmoid", [x])])
            case "relu":
                return self._graph.one("Relu", [x])
        how = {"gelu": "none", "gelu_tanh": "tanh"}[kind]
        return self._graph.one("Gelu", [x], {"approximate": how})

    def rope_table(self, rope: Rope | None, positions: ir.Value) -> ir.Value | None:
        """Sines and cosines of this step's rows, shared by all layers."""
        if rope is None:
            return None
        if rope not in self._ropes:
            frequencies = self._graph.constant(np.asarray(rope.frequencies, np.float32))
            attributes = {"factor": float(rope.attention_factor)}
            self._ropes[rope] = self.ops("RopeTable", [positions, frequencies], attributes)[0]
        return self._ropes[rope]

    def windows(self, x: Value, width: int, stride: int) -> ir.Value:
        """Each stride-th row of x with those around it side by side, zeros where there are none:
        [n, in] to [ceil(n / stride), width * in]."""
        graph, half = self._graph, width // 2
        padded = graph.one("Pad", [self.value(x), graph.constant([half, 0, half, 0])])
        end, axis, step = np.iinfo(np.int64).max, graph.constant([0]), graph.constant([stride])
        taps = []
        for tap in range(width):
            last = graph.constant([tap + 1 - width if tap + 1 < width else end])
            taps.append(graph.one("Slice", [padded, graph.constant([tap]), last, axis, step]))
        return graph.one("Concat", taps, {"axis": 1})

    def ops(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, Any],
        outputs: int = 1,
    ) -> list[ir.Value]:
        """A node of ours; absent inputs at the end are left out."""
        last = max(index for index, value in enumerate(inputs) if value is not None)
        return self._graph.node(
            op_type, inputs[: last + 1], attributes, domain=DOMAIN, outputs=outputs
        )

    def matrix_product(
        self, weight: Weight, bias: Weight | None, norm: NormSpec | None, up: Weight | None = None
    ) -> tuple[list[ir.Value | None], dict[str, Any]]:
        """Inputs (weights, bias, norm weight, norm bias) and attributes of a product."""
        stored = self._store.matrix(weight) if up is None else self._store.gated(weight, up)
        attributes: dict[str, Any] = {
            "format": stored.format,
            "k": stored.k,
            "n": stored.n,
            "norm": "none",
        }
        if norm is not None:
            attributes |= {"norm": norm.kind, "norm_eps": norm.eps}
        return [stored.value, self._store.vector(bias), *self._norm_weights(norm)], attributes

    def _norm_weights(self, norm: NormSpec | None) -> list[ir.Value | None]:
        if norm is None:
            return [None, None]
        return [self._store.vector(norm.weight), self._store.vector(norm.bias)]

    def _write(self, x: Lazy, residual: ir.Value | None = None) -> ir.Value:
        """Write x, plus the residual, which only products and norms are given."""
        match x:
            case Product():
                return self._write_product(x, residual)
            case Normed():
                return self._write_norm(x, residual)
            case Sum():
                return self._write_sum(x)
            case Embedded():
                stored = self._store.matrix(x.table, x.keep_float)
                attributes = {"format": stored.format, "k": stored.k, "n": stored.n}
                attributes["scale"] = x.scale
                return self.ops("Embed", [x.ids, stored.value], attributes)[0]
            case Columns():
                limits = ([x.offset], [x.offset + x.width], [1])
                constants = [self._graph.constant(limit) for limit in limits]
                return self._graph.one("Slice", [self.value(x.product), *constants])
            case Taken():
                return self._graph.one("Gather", [self.value(x.x), x.rows], {"axis": 0})
            case Stacked():
                return self._graph.one("Concat", [self.value(p) for p in x.parts], {"axis": 0})
        raise unsupported(f"has no op for a {type(x).__name__} value where this model uses one")

    def _write_product(self, x: Product, residual: ir.Value | None) -> ir.Value:
        source, norm = x.x, None
        if isinstance(source, Normed) and source.done is None and _is_whole(source):
            norm = source.norm
            source = source.x
        inputs, attributes = self.matrix_product(x.weight, x.bias, norm, x.up)
        inputs.insert(2, residual)
        attributes |= {"activation": x.activation or "none", "gated": int(x.up is not None)}
        return self.ops("QLinear", [self.value(source), *inputs], attributes)[0]

    def _write_norm(self, x: Normed, residual: ir.Value | None) -> ir.Value:
        norm = x.norm
        value, offset = self.columns(x.x)
        attributes = {
            "kind": norm.kind,
            "eps": norm.eps,
            "heads": x.heads,
            "width": norm.width,
            "offset": offset,
            "per_head": int(norm.weight is not None and norm.weight.shape[-1] != norm.width),
        }
        return self.ops("Norm", [value, *self._norm_weights(norm), residual], attributes)[0]

    def _write_sum(self, x: Sum) -> ir.Value:
        """Values first; each product or norm then takes in the sum so far."""
        takers = [
            term
            for term in x.terms
            if isinstance(term, Product | Normed) and term.done is None and term.uses == 1
        ]
        values = [self.value(term) for term in x.terms if term not in takers]
        if not values:
            values.append(self.value(takers.pop(0)))
        total = values[0]
        for value in values[1:]:
            total = self._graph.one("Add", [total, value])
        for term in takers:
            total = self._write(term, total)
        return total


def _is_whole(x: Normed) -> bool:
    """Whether a norm runs over whole rows of a value."""
    return x.heads == 1 and not isinstance(x.x, Columns)
