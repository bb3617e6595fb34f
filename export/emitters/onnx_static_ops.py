"""The op protocol as an ONNX graph of fixed shapes, in ops of the standard but for MatMulNBits.

Values are [rows, width], and every value is marked with its shape as it is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from quickdraft.errors import UnsupportedModel
from quickdraft.export.emitters.base import Part
from quickdraft.export.emitters.onnx_graph import GraphBuilder
from quickdraft.export.emitters.onnx_static_weights import StaticWeights, shape_of, sized, width
from quickdraft.export.emitters.rows import LAYOUT, RowsOps, Sizes, turn_table
from quickdraft.export.ops import Activation, Attention, Rope
from quickdraft.export.weights import Weight
from quickdraft.manifest import StepNames

OPSET = 21
"""The newest that QNN, VitisAI and OpenVINO read alike; it has nothing we need above it."""


class OnnxStaticOps(RowsOps[ir.Value]):
    """Emits one step of a part; `finish` writes it."""

    def __init__(self, part: Part, graph: GraphBuilder, store: StaticWeights, sizes: Sizes) -> None:
        self._graph = graph
        self._store = store
        self._inputs: dict[str, ir.Value] = {}
        self._outputs: list[ir.Value] = []
        self._angles: dict[Rope, tuple[ir.Value, ir.Value]] = {}
        super().__init__(part, sizes)

    def _input(self, name: str, kind: Any, shape: Sequence[int | None]) -> ir.Value:
        if name not in self._inputs:
            kinds = {np.int64: ir.DataType.INT64, np.float32: ir.DataType.FLOAT}
            self._inputs[name] = self._graph.input(name, kinds[kind], _fixed(shape))
        return self._inputs[name]

    def _output(self, value: ir.Value, name: str, shape: Sequence[int | None]) -> None:
        taken = any(value is each for each in (*self._inputs.values(), *self._outputs))
        if taken:  # a value has one name
            value = self._graph.one("Identity", [value])
        self._outputs.append(value)
        self._graph.output(value, name, ir.DataType.FLOAT, _fixed(shape))

    def finish(self, path: Path) -> StepNames:
        """Write the graph and say how its tensors are called.

        Raises:
            BackendError: a predictor leaves out a layer of its target (a fault of its builder).
        """
        step = self._finish_inputs()
        self._graph.save(path, self._part.spec.family, opset=OPSET)
        return step

    # Making values

    def _one(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        shape: Sequence[int],
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Value:
        return sized(self._graph.one(op, inputs, attributes), *shape)

    def _like(self, op: str, x: ir.Value, *others: ir.Value) -> ir.Value:
        """A function of x, value by value."""
        return self._one(op, [x, *others], shape_of(x))

    def _number(self, value: float) -> ir.Value:
        return self._graph.constant(np.array(value, np.float32))

    def _reshape(self, x: ir.Value, *shape: int) -> ir.Value:
        return self._one("Reshape", [x, self._graph.constant(shape)], shape)

    def _transpose(self, x: ir.Value, *order: int) -> ir.Value:
        shape = shape_of(x)
        return self._one("Transpose", [x], [shape[axis] for axis in order], {"perm": order})

    def _concat(self, parts: Sequence[ir.Value], axis: int) -> ir.Value:
        shape = list(shape_of(parts[0]))
        shape[axis] = sum(shape_of(part)[axis] for part in parts)
        return self._one("Concat", list(parts), shape, {"axis": axis})

    def _split(self, x: ir.Value, sizes: Sequence[int], axis: int) -> list[ir.Value]:
        shape = list(shape_of(x))
        parts = self._graph.node(
            "Split", [x, self._graph.constant(sizes)], {"axis": axis}, outputs=len(sizes)
        )
        for part, size in zip(parts, sizes, strict=True):
            sized(part, *shape[:axis], size, *shape[axis + 1 :])
        return parts

    def _matmul(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._one("MatMul", [a, b], [*shape_of(a)[:-1], width(b)])

    def _gather(self, x: ir.Value, rows: ir.Value) -> ir.Value:
        return self._one("Gather", [x, rows], [shape_of(rows)[0], width(x)], {"axis": 0})

    def _by_heads(self, x: ir.Value, heads: int) -> ir.Value:
        """[n, width] to [n, heads, width / heads]; one head stays as it is."""
        n, columns = shape_of(x)
        return x if heads == 1 else self._reshape(x, n, heads, columns // heads)

    def _flat(self, x: ir.Value) -> ir.Value:
        """The way back."""
        n, *rest = shape_of(x)
        return x if len(rest) == 1 else self._reshape(x, n, int(np.prod(rest)))

    # Rows and matrices

    def embed(self, ids: ir.Value, table: Weight) -> ir.Value:
        """Rows of a table; vectors of positions are few and stay float32."""
        return self._store.gather(table, ids, keep_float=ids is self._positions)

    def take_rows(self, x: ir.Value, rows: ir.Value) -> ir.Value:
        """[n, width] to [m, width]."""
        return self._gather(x, rows)

    def stack(self, parts: Sequence[ir.Value]) -> ir.Value:
        """Rows of several values, one value after another."""
        self._levels = max(self._levels, len(parts))
        return self._concat(parts, 0)

    def linear(self, x: ir.Value, weight: Weight, bias: Weight | None = None) -> ir.Value:
        """Matrix product plus bias."""
        return self._store.linear(x, weight, bias)

    def linears(self, x: ir.Value, pairs: Sequence[tuple[Weight, Weight | None]]) -> list[ir.Value]:
        """Joined products, split again."""
        return self._store.linears(x, pairs)

    # Norms

    def rms_norm(self, x: ir.Value, weight: Weight | None, eps: float, heads: int = 1) -> ir.Value:
        """In the steps that optimisers know as one op: the standard has one only from opset 23."""
        parts = self._by_heads(x, heads)
        squares = self._like("Pow", parts, self._number(2))
        axes = self._graph.constant([-1])
        column = (*shape_of(parts)[:-1], 1)
        mean = self._one("ReduceMean", [squares, axes], column, {"keepdims": 1})
        root = self._like("Sqrt", self._like("Add", mean, self._number(eps)))
        normed = self._like("Div", parts, root)
        if weight is not None:
            normed = self._like("Mul", normed, self._store.vector(weight))
        return self._flat(normed)

    def layer_norm(
        self,
        x: ir.Value,
        weight: Weight | None,
        bias: Weight | None,
        eps: float,
        heads: int = 1,
    ) -> ir.Value:
        """One op; a weight per head is applied to all heads at once."""
        parts, own = self._by_heads(x, heads), (weight, bias)
        per_head = heads > 1 and any(w is not None and w.shape[-1] == width(x) for w in own)
        scale, shift = (None if w is None else self._store.vector(w) for w in own)
        inner = [scale, shift]
        if per_head or scale is None:
            ones = self._graph.constant(np.ones(width(parts), np.float32))
            inner = [ones, None if per_head else shift]
        # Without the last one where there is none: ONNX Runtime's optimiser crashes at its name.
        inner = [each for each in inner if each is not None]
        attributes = {"axis": -1, "epsilon": eps}
        normed = self._flat(
            self._one("LayerNormalization", [parts, *inner], shape_of(parts), attributes)
        )
        if per_head and scale is not None:
            normed = self._like("Mul", normed, scale)
        if per_head and shift is not None:
            normed = self._like("Add", normed, shift)
        return normed

    # Attention

    def rope(self, x: ir.Value, positions: ir.Value, rope: Rope, heads: int) -> ir.Value:
        """Both halves of what turns, then the rest."""
        n, columns = shape_of(x)
        pairs, head_dim = len(rope.frequencies), columns // heads
        cosine, sine = self._turns(rope)
        parts = self._reshape(x, n, heads, head_dim)
        sizes = [size for size in (pairs, pairs, head_dim - 2 * pairs) if size]
        first, second, *rest = self._split(parts, sizes, 2)
        turned = [
            self._like("Sub", self._like("Mul", first, cosine), self._like("Mul", second, sine)),
            self._like("Add", self._like("Mul", second, cosine), self._like("Mul", first, sine)),
        ]
        return self._flat(self._concat([*turned, *rest], 2))

    def _turns(self, rope: Rope) -> tuple[ir.Value, ir.Value]:
        """Cosine and sine of every row's angles, [n, 1, pairs], from a table of all positions."""
        if rope not in self._angles:
            assert self._sizes.slots is not None  # all sizes are fixed  # noqa: S101
            places = np.arange(self._sizes.slots, dtype=np.float32)
            table = turn_table(rope, places, rope.attention_factor)
            name = f"rope.{len(self._angles)}"
            stored = sized(self._graph.weight(name, table), *table.shape)
            rows = self._gather(stored, self._positions)
            rows = self._reshape(rows, shape_of(rows)[0], 1, width(rows))
            pairs = len(rope.frequencies)
            cosine, sine = self._split(rows, [pairs, pairs], 2)
            self._angles[rope] = (cosine, sine)
        return self._angles[rope]

    def attend(self, q: ir.Value, k: ir.Value, v: ir.Value, attention: Attention) -> ir.Value:
        """Softmax over the committed rows and those of the step, as one row of scores; products
        with either, so that nothing of the cache is copied."""
        a, query = attention, self._query(q, attention)
        own_keys, own_values = self._present(k, v, a, LAYOUT)
        keys, values = self._past(a)
        products = [
            self._matmul(query, self._transpose(side, 0, 2, 1)) for side in (keys, own_keys)
        ]
        weights = self._softmax(self._concat(products, 2), a)
        lengths = [shape_of(side)[1] for side in (keys, own_keys)]
        seen, own = self._split(weights, lengths, 2)
        mixed = self._like("Add", self._matmul(seen, values), self._matmul(own, own_values))
        n, group = shape_of(q)[0], a.num_heads // a.num_kv_heads
        mixed = self._reshape(mixed, a.num_kv_heads, group, n, a.head_dim)
        return self._flat(self._transpose(mixed, 2, 0, 1, 3))

    def _by_head(self, rows: ir.Value, a: Attention) -> ir.Value:
        n = shape_of(rows)[0]
        return self._transpose(self._reshape(rows, n, a.num_kv_heads, a.head_dim), 1, 0, 2)

    def _query(self, q: ir.Value, a: Attention) -> ir.Value:
        """[n, heads * head_dim] to [kv_heads, heads of each * n, head_dim], scaled: products stay
        small where they are computed in float16."""
        n, group = shape_of(q)[0], a.num_heads // a.num_kv_heads
        parts = self._reshape(self.scale(q, a.scale), n, a.num_kv_heads, group, a.head_dim)
        parts = self._transpose(parts, 1, 2, 0, 3)
        return self._reshape(parts, a.num_kv_heads, group * n, a.head_dim)

    def _softmax(self, scores: ir.Value, a: Attention) -> ir.Value:
        """Of scores [kv_heads, group * n, all], capped, under the bias of the window."""
        if a.relative is not None:
            raise UnsupportedModel("relative positions are for encoder-decoder models")
        if a.softcap is not None:
            scores = self.softcap(scores, a.softcap)
        heads, rows, seen = shape_of(scores)
        group = a.num_heads // a.num_kv_heads
        split = self._reshape(scores, heads, group, rows // group, seen)
        biased = self._like("Add", split, self._bias(a.window))
        weights = self._one("Softmax", [biased], shape_of(biased), {"axis": -1})
        return self._reshape(weights, heads, rows, seen)

    # Value by value

    def activate(self, x: ir.Value, kind: Activation) -> ir.Value:
        """One op each, but for SiLU, which is two."""
        if kind == "silu":
            return self._like("Mul", x, self._like("Sigmoid", x))
        if kind == "relu":
            return self._like("Relu", x)
        approximate = "tanh" if kind == "gelu_tanh" else "none"
        return self._one("Gelu", [x], shape_of(x), {"approximate": approximate})

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Sum of equal shapes."""
        return self._like("Add", a, b)

    def multiply(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Product of equal shapes."""
        return self._like("Mul", a, b)

    def scale(self, x: ir.Value, factor: float) -> ir.Value:
        """Product with a constant."""
        return self._like("Mul", x, self._number(factor))

    def softcap(self, x: ir.Value, cap: float) -> ir.Value:
        """cap * tanh(x / cap)."""
        return self.scale(self._like("Tanh", self.scale(x, 1.0 / cap)), cap)


def _fixed(shape: Sequence[int | None]) -> list[int]:
    sizes = [size for size in shape if size is not None]
    assert len(sizes) == len(shape)  # all sizes are fixed  # noqa: S101
    return sizes
