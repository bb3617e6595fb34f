"""The op protocol as portable ONNX: standard ops and ONNX Runtime's contrib ops, one node stream.

Values are [1, rows, width] inside the graph. Keys and values are written in place into slot-major
caches, then attended over whole slots, so that a row's sums run over logical positions in one
fixed order: its bits do not depend on how many rows share the step
(docs/decisions/001-slot-major-attention.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from quickdraft.errors import UnsupportedModel
from quickdraft.export.emitters.base import Part, check_staged
from quickdraft.export.emitters.composed import ComposedOps
from quickdraft.export.emitters.onnx_graph import CONTRIB, GraphBuilder
from quickdraft.export.emitters.onnx_weights import WeightStore
from quickdraft.export.ops import Activation, Attention, Rope
from quickdraft.export.weights import Weight
from quickdraft.manifest import SlotsLayout, StepNames

LAYOUT = SlotsLayout(
    kind="slots",
    alignment=64,
    past_key="past_key_values.{layer}.key",
    past_value="past_key_values.{layer}.value",
    present_key="present.{layer}.key",
    present_value="present.{layer}.value",
)
TARGET_LAYOUT = SlotsLayout(
    kind="slots",
    alignment=64,
    past_key="target.{layer}.key",
    past_value="target.{layer}.value",
    present_key="present_target.{layer}.key",
    present_value="present_target.{layer}.value",
)
"""The cache that a predictor writes."""


@dataclass
class _Sum:
    """A residual addition that a following norm may fuse."""

    a: ir.Value
    b: ir.Value
    value: ir.Value | None = None


Value = ir.Value | _Sum


class OnnxOps(ComposedOps[Value]):
    """Emits one step of a model; `finish` writes it."""

    def __init__(self, graph: GraphBuilder, store: WeightStore, part: Part) -> None:
        self._open(graph, store, part)
        self._tokens = graph.input("input_ids", ir.DataType.INT64, ["n"])
        self._positions = graph.input("position_ids", ir.DataType.INT64, ["n"])
        self._position_row = graph.one("Unsqueeze", [self._positions, graph.constant([0])])
        self._slots = self._places("slot_ids")
        if part.features:
            shape: list[int | str] = ["n", part.features]
            self._features = graph.input("features", ir.DataType.FLOAT, shape)
        if part.target is None:
            self._rows = graph.input("output_rows", ir.DataType.INT64, ["m"])
        else:
            self._staged: set[int] = set()
            self._target_rows = self._places("target_rows")

    def _open(self, graph: GraphBuilder, store: WeightStore, part: Part) -> None:
        self._graph = graph
        self._store = store
        self._part = part
        self._spec = part.spec
        self._wanted = set(part.hidden_states)
        self._hidden: dict[int, str] = {}
        self._biases: dict[int | None, str] = {}
        self._memo: dict[tuple[Any, ...], ir.Value] = {}

    def _places(self, name: str) -> ir.Value:
        """An input of slots to write, as ScatterND takes it."""
        slots = self._graph.input(name, ir.DataType.INT64, ["n"])
        return self._graph.one("Unsqueeze", [slots, self._graph.constant([1])])

    # Inputs and outputs

    def tokens(self) -> Value:
        """Token ids, [1, n]."""
        return self._graph.one("Unsqueeze", [self._tokens, self._graph.constant([0])])

    def positions(self) -> Value:
        """Positions, [1, n]."""
        return self._position_row

    def output_rows(self) -> Value:
        """Rows whose logits are wanted, [m]."""
        return self._rows

    def features(self) -> Value:
        """Vectors that come with the tokens, [1, n, width]."""
        return self._graph.one("Unsqueeze", [self._features, self._graph.constant([0])])

    def hidden_state(self, x: Value, layer: int) -> None:
        """Emit the residual stream if this layer was asked for."""
        if layer in self._wanted:
            name = f"hidden_states.{layer}"
            shape: list[int | str] = ["n", self._spec.hidden_size]
            self._graph.output(self._flat(x), name, ir.DataType.FLOAT, shape)
            self._hidden[layer] = name

    def logits(self, x: Value) -> None:
        """Name the result."""
        shape: list[int | str] = ["m", self._spec.vocab_size]
        self._graph.output(self._flat(x), "logits", ir.DataType.FLOAT, shape)

    def _flat(self, x: Value) -> ir.Value:
        return self._graph.one("Squeeze", [self._value(x), self._graph.constant([0])])

    def finish(self, path: Path) -> StepNames:
        """Write the graph and say how its tensors are called.

        Raises:
            BackendError: a predictor leaves out a layer of its target (a fault of its builder).
        """
        part = self._part
        if part.target is not None:
            check_staged(part, self._staged)
        self._graph.save(path, self._spec.family)
        return StepNames(
            tokens="input_ids",
            positions="position_ids",
            slots="slot_ids",
            output_rows="output_rows" if part.target is None else None,
            logits="logits" if part.target is None else None,
            biases=self._biases,
            hidden_states=self._hidden,
            features="features" if part.features else None,
            target_rows=None if part.target is None else "target_rows",
        )

    # Rows and matrices

    def embed(self, ids: Value, table: Weight) -> Value:
        """Rows of a table; vectors of positions are few and stay float32."""
        keep = ids is self._position_row
        return self._store.gather(table, self._value(ids), keep_float=keep)

    def take_rows(self, x: Value, rows: Value) -> Value:
        """[1, n, width] to [1, m, width]."""
        return self._graph.one("Gather", [self._value(x), self._value(rows)], {"axis": 1})

    def stack(self, parts: Sequence[Value]) -> Value:
        """Rows of several values, one value after another."""
        return self._graph.one("Concat", [self._value(part) for part in parts], {"axis": 1})

    def linear(self, x: Value, weight: Weight, bias: Weight | None = None) -> Value:
        """Matrix product, quantised or not, plus bias."""
        return self._store.linear(self._value(x), weight, bias)

    def linears(self, x: Value, pairs: Sequence[tuple[Weight, Weight | None]]) -> list[Value]:
        """Joined products, split again."""
        return list(self._store.linears(self._value(x), pairs))

    # Norms

    def rms_norm(self, x: Value, weight: Weight | None, eps: float, heads: int = 1) -> Value:
        """RMSNormalization, fused with a residual addition where one came just before."""
        scale = self._store.vector(weight) if weight else None
        if isinstance(x, _Sum) and x.value is None and heads == 1 and scale is not None:
            return self._skip_norm("SkipSimplifiedLayerNormalization", x, [scale], eps)
        if heads == 1:
            return self._rms(self._value(x), scale, eps)
        return self._join_heads(self._rms(self._split_heads(self._value(x), heads), scale, eps))

    def _rms(self, x: ir.Value, scale: ir.Value | None, eps: float) -> ir.Value:
        inputs = [x, self._one if scale is None else scale]
        return self._graph.one("RMSNormalization", inputs, {"axis": -1, "epsilon": eps})

    @property
    def _one(self) -> ir.Value:
        """The scale of a norm without one, of whatever width."""
        return self._graph.constant(np.ones(1, np.float32))

    def layer_norm(
        self, x: Value, weight: Weight | None, bias: Weight | None, eps: float, heads: int = 1
    ) -> Value:
        """LayerNormalization; a weight per head is applied after normalising with ones."""
        scale = self._store.vector(weight) if weight else None
        shift = self._store.vector(bias) if bias else None
        if isinstance(x, _Sum) and x.value is None and heads == 1 and scale is not None:
            return self._skip_norm("SkipLayerNormalization", x, [scale, shift], eps)
        attributes = {"axis": -1, "epsilon": eps}
        if heads == 1:
            inputs = [self._value(x), self._one if scale is None else scale, shift]
            return self._graph.one("LayerNormalization", inputs, attributes)
        parts = self._split_heads(self._value(x), heads)
        models = [self._spec] if self._part.target is None else [self._spec, self._part.target]
        widths = {model.head_dim for model in models}
        per_head = weight is not None and weight.shape[-1] not in widths
        inner = [parts, self._one] if per_head or scale is None else [parts, scale, shift]
        joined = self._join_heads(self._graph.one("LayerNormalization", inner, attributes))
        if per_head and scale is not None:
            joined = self._graph.one("Mul", [joined, scale])
            if shift is not None:
                joined = self._graph.one("Add", [joined, shift])
        return joined

    def _skip_norm(
        self, op_type: str, total: _Sum, scales: Sequence[ir.Value | None], eps: float
    ) -> ir.Value:
        outputs = self._graph.node(
            op_type, [total.a, total.b, *scales], {"epsilon": eps}, domain=CONTRIB, outputs=4
        )
        for unused in outputs[1:3]:
            unused.name = ""
        total.value = outputs[3]
        return outputs[0]

    def _split_heads(self, x: ir.Value, heads: int) -> ir.Value:
        return self._reshape(x, [0, 0, heads, -1])

    def _join_heads(self, x: ir.Value) -> ir.Value:
        return self._reshape(x, [0, 0, -1])

    def _reshape(self, x: ir.Value, shape: Sequence[int]) -> ir.Value:
        return self._graph.one("Reshape", [x, self._graph.constant(shape)])

    # Attention

    def rope(self, x: Value, positions: Value, rope: Rope, heads: int) -> Value:
        """RotaryEmbedding over sines and cosines of this step's rows only."""
        cosine, sine = self._angles(rope)
        start = self._graph.constant([0])
        attributes = {"num_heads": heads, "rotary_embedding_dim": 2 * len(rope.frequencies)}
        inputs = [self._value(x), start, cosine, sine]
        return self._graph.one("RotaryEmbedding", inputs, attributes, domain=CONTRIB)

    def _angles(self, rope: Rope) -> tuple[ir.Value, ir.Value]:
        if ("cos", rope) not in self._memo:
            graph = self._graph
            column = graph.one("Unsqueeze", [self._positions, graph.constant([1])])
            column = graph.one("Cast", [column], {"to": ir.DataType.FLOAT})
            frequencies = np.asarray(rope.frequencies, np.float32)
            angles = graph.one("Mul", [column, graph.constant(frequencies)])
            for kind, op_type in (("cos", "Cos"), ("sin", "Sin")):
                value = graph.one(op_type, [angles])
                if rope.attention_factor != 1.0:
                    factor = graph.constant(np.float32(rope.attention_factor).reshape(1))
                    value = graph.one("Mul", [value, factor])
                self._memo[kind, rope] = value
        return self._memo["cos", rope], self._memo["sin", rope]

    def attend(self, q: Value, k: Value, v: Value, attention: Attention) -> Value:
        """Write k and v into their slots, then attend over all slots under the bias."""
        written = self._write(k, v, attention, LAYOUT)
        return self._mix(q, *written, attention, partial(self._score_bias, attention))

    def _score_bias(self, attention: Attention, group: int) -> ir.Value:
        """What is added to the scores, [1 or kv_heads, n * group, slots]."""
        if attention.relative is not None:
            raise UnsupportedModel("relative positions are for encoder-decoder models")
        return self._bias(attention.window, group)

    def _mix(
        self,
        q: Value,
        keys: ir.Value,
        values: ir.Value,
        a: Attention,
        bias: Callable[[int], ir.Value] | None,
    ) -> Value:
        """Attend over keys and values [rows, kv_heads, head_dim]. bias: what to add to scores of so
        many queries per row and KV head."""
        graph = self._graph
        # A matrix of one row takes another path through the library, with other rounding; so
        # heads that share no KV head are computed twice.
        group = a.num_heads // a.num_kv_heads
        copies = 2 if group == 1 else 1
        query = self._reshape(self._value(q), [-1, a.num_kv_heads, group, a.head_dim])
        if copies == 2:
            query = graph.one("Concat", [query, query], {"axis": 2})
        query = graph.one("Transpose", [query], {"perm": [1, 0, 2, 3]})
        query = self._reshape(query, [a.num_kv_heads, -1, a.head_dim])
        scores = self._scores(query, keys, a)
        if bias is not None:
            scores = graph.one("Add", [scores, bias(group * copies)])
        weights = graph.one("Softmax", [scores], {"axis": -1})
        mixed = graph.one("FusedMatMul", [weights, values], {"transBatchB": 1}, domain=CONTRIB)
        mixed = self._reshape(mixed, [a.num_kv_heads, -1, group * copies, a.head_dim])
        mixed = graph.one("Transpose", [mixed], {"perm": [1, 0, 2, 3]})
        if copies == 2:
            mixed = graph.one("Gather", [mixed, graph.constant([0])], {"axis": 2})
        return self._reshape(mixed, [1, -1, a.num_heads * a.head_dim])

    def stage(self, k: Value, v: Value, attention: Attention) -> None:
        """Write k and v into slots of the target's cache."""
        self._staged.add(attention.layer)
        self._write(k, v, attention, TARGET_LAYOUT)

    def _write(
        self, k: Value, v: Value, a: Attention, layout: SlotsLayout
    ) -> tuple[ir.Value, ir.Value]:
        """Keys and values of a layer with the rows of this step written in place."""
        own = layout is LAYOUT
        slots = self._slots if own else self._target_rows
        count = "slots" if own else "target_slots"
        shape: list[int | str] = [count, a.num_kv_heads, a.head_dim]
        written = []
        for rows, past, present in (
            (k, layout.past_key, layout.present_key),
            (v, layout.past_value, layout.present_value),
        ):
            cache = self._graph.input(past.format(layer=a.layer), ir.DataType.FLOAT, shape)
            updates = self._reshape(self._value(rows), [-1, a.num_kv_heads, a.head_dim])
            value = self._graph.one("ScatterND", [cache, slots, updates])
            self._graph.output(value, present.format(layer=a.layer), ir.DataType.FLOAT, shape)
            written.append(value)
        return written[0], written[1]

    def _scores(self, query: ir.Value, keys: ir.Value, a: Attention) -> ir.Value:
        alpha = a.scale / a.softcap if a.softcap else a.scale
        attributes = {"transB": 1, "transBatchB": 1, "alpha": float(alpha)}
        scores = self._graph.one("FusedMatMul", [query, keys], attributes, domain=CONTRIB)
        if not a.softcap:
            return scores
        capped = self._graph.one("Tanh", [scores])
        return self._times(capped, a.softcap)

    def _bias(self, window: int | None, group: int) -> ir.Value:
        """The mask of one window, [1, n * group, slots], each row repeated for its heads."""
        if window not in self._biases:
            name = "attention_bias" if window is None else f"attention_bias.window_{window}"
            self._biases[window] = name
            self._memo["bias", window] = self._graph.input(name, ir.DataType.FLOAT, ["n", "slots"])
        if ("bias", window, group) not in self._memo:
            graph, bias = self._graph, self._memo["bias", window]
            rows = graph.one("Unsqueeze", [bias, graph.constant([1])])
            rows = graph.one("Tile", [rows, graph.constant([1, group, 1])])
            slots = graph.one("Shape", [bias], {"start": 1, "end": 2})
            shape = graph.one("Concat", [graph.constant([1, -1]), slots], {"axis": 0})
            self._memo["bias", window, group] = graph.one("Reshape", [rows, shape])
        return self._memo["bias", window, group]

    # Value by value

    def activate(self, x: Value, kind: Activation) -> Value:
        """One node each; SiLU is QuickGelu with alpha 1."""
        value = self._value(x)
        if kind == "silu":
            return self._graph.one("QuickGelu", [value], {"alpha": 1.0}, domain=CONTRIB)
        if kind == "relu":
            return self._graph.one("Relu", [value])
        approximate = "tanh" if kind == "gelu_tanh" else "none"
        return self._graph.one("Gelu", [value], {"approximate": approximate})

    def add(self, a: Value, b: Value) -> Value:
        """Deferred, in case a norm follows."""
        return _Sum(self._value(a), self._value(b))

    def multiply(self, a: Value, b: Value) -> Value:
        """Product of equal shapes."""
        return self._graph.one("Mul", [self._value(a), self._value(b)])

    def scale(self, x: Value, factor: float) -> Value:
        """Product with a constant."""
        return self._times(self._value(x), factor)

    def softcap(self, x: Value, cap: float) -> Value:
        """cap * tanh(x / cap)."""
        inner = self._times(self._value(x), 1.0 / cap)
        return self._times(self._graph.one("Tanh", [inner]), cap)

    def _times(self, x: ir.Value, factor: float) -> ir.Value:
        constant = self._graph.constant(np.float32(factor).reshape(1))
        return self._graph.one("Mul", [x, constant])

    def _value(self, x: Value) -> ir.Value:
        if isinstance(x, ir.Value):
            return x
        if x.value is None:
            x.value = self._graph.one("Add", [x.a, x.b])
        return x.value
