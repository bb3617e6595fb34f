"""The op protocol as an OpenVINO graph of standard ops.

Values are [rows, width].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset15 as opset

from quickdraft.errors import UnsupportedModel
from quickdraft.export.emitters.base import Part
from quickdraft.export.emitters.openvino_rope import reach_of, turns
from quickdraft.export.emitters.openvino_weights import Node, WeightStore, constant
from quickdraft.export.emitters.rows import LAYOUT, RowsOps, Sizes
from quickdraft.export.ops import Activation, Attention, Rope
from quickdraft.export.weights import Weight, concat_rows, join_biases
from quickdraft.manifest import StepNames


@dataclass
class _Ends:
    """Inputs and outputs of the graph so far, by name."""

    inputs: dict[str, Node] = field(default_factory=dict)
    outputs: dict[str, Node] = field(default_factory=dict)


class OpenVinoOps(RowsOps[Node]):
    """Emits one step of a part; `finish` makes the model."""

    def __init__(self, part: Part, store: WeightStore, sizes: Sizes) -> None:
        self._store = store
        self._ends = _Ends()
        self._angles: dict[Rope, tuple[Node, Node]] = {}
        super().__init__(part, sizes)

    def _input(self, name: str, kind: Any, shape: Sequence[int | None]) -> Node:
        if name not in self._ends.inputs:
            dimensions = [-1 if size is None else size for size in shape]
            node = opset.parameter(ov.PartialShape(dimensions), kind, name=name)
            node.output(0).set_names({name})
            self._ends.inputs[name] = node
        return self._ends.inputs[name]

    def _output(self, value: Node, name: str, shape: Sequence[int | None] = ()) -> None:
        self._ends.outputs[name] = value  # of the shape that it has

    def finish(self) -> tuple[Any, StepNames]:
        """The model, an openvino.Model, and how its tensors are called.

        Raises:
            BackendError: a predictor leaves out a layer of its target (a fault of its builder).
        """
        step = self._finish_inputs()
        results = []
        for name, value in self._ends.outputs.items():
            # A node of its own: one value may be several outputs, and names are the outputs'.
            result = opset.result(value)
            result.set_friendly_name(name)
            result.output(0).set_names({name})
            results.append(result)
        inputs = list(self._ends.inputs.values())
        return ov.Model(results, inputs, self._part.spec.family), step

    # Rows and matrices

    def embed(self, ids: Node, table: Weight) -> Node:
        """Rows of a table; vectors of positions are few and stay float32."""
        matrix = self._store.matrix(table, keep_float=ids is self._positions)
        return opset.gather(matrix, ids, scalar(0))

    def take_rows(self, x: Node, rows: Node) -> Node:
        """[n, width] to [m, width]."""
        return opset.gather(x, rows, scalar(0))

    def stack(self, parts: Sequence[Node]) -> Node:
        """Rows of several values, one value after another."""
        self._levels = max(self._levels, len(parts))
        return opset.concat(list(parts), 0)

    def linear(self, x: Node, weight: Weight, bias: Weight | None = None) -> Node:
        """Matrix product plus bias."""
        y = opset.matmul(x, self._store.matrix(weight), False, True)
        return y if bias is None else opset.add(y, self._store.vector(bias))

    def linears(self, x: Node, pairs: Sequence[tuple[Weight, Weight | None]]) -> list[Node]:
        """Products of the same x, joined where the weights are stored alike, and split again."""
        alike: dict[str, list[int]] = {}
        for index, (weight, _) in enumerate(pairs):
            alike.setdefault(self._store.form(weight), []).append(index)
        results: dict[int, Node] = {}
        for indices in alike.values():
            chosen = [pairs[index] for index in indices]
            joined = concat_rows([weight for weight, _ in chosen]), join_biases(chosen)
            y = self.linear(x, *(joined if len(chosen) > 1 else chosen[0]))
            sizes = integers([weight.shape[0] for weight, _ in chosen])
            parts = opset.variadic_split(y, scalar(-1), sizes).outputs() if len(chosen) > 1 else [y]
            results.update(zip(indices, parts, strict=True))
        return [results[index] for index in range(len(pairs))]

    # Norms

    def rms_norm(self, x: Node, weight: Weight | None, eps: float, heads: int = 1) -> Node:
        """In the steps that plugins know as one op."""
        parts = _split(x, heads)
        squares = opset.power(parts, _float(2.0))
        mean = opset.reduce_mean(squares, integers([-1]), True)
        inverse = opset.divide(_float(1.0), opset.sqrt(opset.add(mean, _float(eps))))
        normed = opset.multiply(parts, inverse)
        if weight is not None:
            normed = opset.multiply(normed, self._store.vector(weight))
        return _join(normed, heads)

    def layer_norm(
        self, x: Node, weight: Weight | None, bias: Weight | None, eps: float, heads: int = 1
    ) -> Node:
        """MVN; a weight per head is applied to all heads at once."""
        normed = opset.mvn(_split(x, heads), integers([-1]), True, float(eps), "inside_sqrt")
        per_head = [w for w in (weight, bias) if w is not None and w.shape[-1] == _width(x)]
        if heads > 1 and per_head:
            normed, heads = _join(normed, heads), 1
        if weight is not None:
            normed = opset.multiply(normed, self._store.vector(weight))
        if bias is not None:
            normed = opset.add(normed, self._store.vector(bias))
        return _join(normed, heads)

    # Attention

    def rope(self, x: Node, positions: Node, rope: Rope, heads: int) -> Node:
        """Both halves of what turns, then the rest."""
        pairs, width = len(rope.frequencies), _width(x) // heads
        cosine, sine = self._turns(rope)
        parts = _split(x, heads, always=True)
        sizes = [pairs, pairs, width - 2 * pairs]
        lengths = [size for size in sizes if size]
        pieces = opset.variadic_split(parts, scalar(2), integers(lengths)).outputs()
        first, second = pieces[:2]
        turned = [
            opset.subtract(opset.multiply(first, cosine), opset.multiply(second, sine)),
            opset.add(opset.multiply(second, cosine), opset.multiply(first, sine)),
        ]
        return _flat(opset.concat([*turned, *pieces[2:]], 2), _width(x))

    def _turns(self, rope: Rope) -> tuple[Node, Node]:
        """Cosine and sine of every row's angles, [n, 1, pairs]."""
        if rope not in self._angles:
            reach, slots = reach_of(self._part), self._sizes.slots
            most = reach if slots is None else min(reach, slots)
            self._angles[rope] = turns(self._positions, rope, most, whole=slots is not None)
        return self._angles[rope]

    def attend(self, q: Node, k: Node, v: Node, attention: Attention) -> Node:
        """Softmax over the committed rows and those of the step, as one row of scores; products
        with either, so that nothing of the cache is copied."""
        a, query = attention, self._query(q, attention)
        own_keys, own_values = self._present(k, v, a, LAYOUT)
        keys, values = self._past(a)
        joined = [opset.matmul(query, side, False, True) for side in (keys, own_keys)]
        weights = self._softmax(opset.concat(joined, 2), a, self._score_bias(a))
        lengths = opset.concat([size_of(keys, 1), size_of(own_keys, 1)], 0)
        seen, own = opset.variadic_split(weights, scalar(2), lengths).outputs()
        mixed = opset.add(
            opset.matmul(seen, values, False, False), opset.matmul(own, own_values, False, False)
        )
        return self._joined_heads(mixed, a)

    def _query(self, q: Node, a: Attention) -> Node:
        """[n, heads * head_dim] to [kv_heads, heads of each * n, head_dim]."""
        group = a.num_heads // a.num_kv_heads
        parts = opset.reshape(q, integers([-1, a.num_kv_heads, group, a.head_dim]), False)
        parts = opset.transpose(parts, integers([1, 2, 0, 3]))
        return opset.reshape(parts, integers([a.num_kv_heads, -1, a.head_dim]), False)

    def _joined_heads(self, mixed: Node, a: Attention) -> Node:
        """The way back."""
        group = a.num_heads // a.num_kv_heads
        shape = integers([a.num_kv_heads, group, -1, a.head_dim])
        mixed = opset.transpose(opset.reshape(mixed, shape, False), integers([2, 0, 1, 3]))
        return _flat(mixed, a.num_heads * a.head_dim)

    def _score_bias(self, a: Attention) -> Node:
        """What is added to scores [kv_heads, group, n, all], or less than that to be repeated."""
        if a.relative is not None:
            raise UnsupportedModel("relative positions are for encoder-decoder models")
        return self._bias(a.window)

    def _softmax(self, products: Node, a: Attention, bias: Node | None) -> Node:
        """Of products [kv_heads, group * n, all], scaled and capped, under a bias."""
        scores, group = opset.multiply(products, _float(a.scale)), a.num_heads // a.num_kv_heads
        if a.softcap is not None:
            scores = self.softcap(scores, a.softcap)
        if bias is None:
            return opset.softmax(scores, 2)
        shape = opset.concat([integers([a.num_kv_heads, group, -1]), size_of(scores, 2)], 0)
        biased = opset.add(opset.reshape(scores, shape, False), bias)
        joined = opset.concat([integers([a.num_kv_heads, -1]), size_of(scores, 2)], 0)
        return opset.reshape(opset.softmax(biased, 3), joined, False)

    def _by_head(self, rows: Node, a: Attention) -> Node:
        return by_head(rows, a)

    # Value by value

    def activate(self, x: Node, kind: Activation) -> Node:
        """One node each."""
        return _ACTIVATIONS[kind](x)

    def add(self, a: Node, b: Node) -> Node:
        """Sum of equal shapes."""
        return opset.add(a, b)

    def multiply(self, a: Node, b: Node) -> Node:
        """Product of equal shapes."""
        return opset.multiply(a, b)

    def scale(self, x: Node, factor: float) -> Node:
        """Product with a constant."""
        return opset.multiply(x, _float(factor))

    def softcap(self, x: Node, cap: float) -> Node:
        """cap * tanh(x / cap)."""
        return opset.multiply(opset.tanh(opset.multiply(x, _float(1.0 / cap))), _float(cap))


_ACTIVATIONS: Mapping[str, Any] = {
    "silu": opset.swish,
    "gelu": lambda x: opset.gelu(x, "ERF"),
    "gelu_tanh": lambda x: opset.gelu(x, "TANH"),
    "relu": opset.relu,
}


def scalar(value: int) -> Node:
    """An int64 constant, []."""
    return constant(np.array(value, np.int64))


def integers(values: Sequence[int]) -> Node:
    """An int64 constant, [n]."""
    return constant(np.array(values, np.int64))


def _float(value: float) -> Node:
    return constant(np.array(value, np.float32))


def size_of(x: Node, axis: int) -> Node:
    """Length of one axis, int64 [1]."""
    return opset.gather(opset.shape_of(x, "i64"), integers([axis]), scalar(0))


def by_head(rows: Node, a: Attention) -> Node:
    """[n, kv_heads * head_dim] to [kv_heads, n, head_dim]."""
    parts = opset.reshape(rows, integers([-1, a.num_kv_heads, a.head_dim]), False)
    return opset.transpose(parts, integers([1, 0, 2]))


def _width(x: Node) -> int:
    """Length of the last axis, which is always known."""
    shape = (x if isinstance(x, ov.Output) else x.output(0)).get_partial_shape()
    return int(shape[len(shape) - 1].get_length())


def _split(x: Node, heads: int, always: bool = False) -> Node:
    """[n, width] to [n, heads, width / heads]; one head stays as it is unless asked."""
    if heads == 1 and not always:
        return x
    return opset.reshape(x, integers([-1, heads, _width(x) // heads]), False)


def _join(x: Node, heads: int) -> Node:
    return x if heads == 1 else _flat(x, _width(x) * heads)


def _flat(x: Node, width: int) -> Node:
    return opset.reshape(x, integers([-1, width]), False)
