"""The hotpath emitter: a graph of a few fused ops per layer, each a kernel of ours.

The ops and what they compute: `quickdraft.hotpath_ops`. Values are [n, width]. The cache, one
buffer for all layers, passes through the attention of every layer, so that their order is a
dependency of data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from quickdraft.errors import BackendError
from quickdraft.export.emitters.base import EmitRequest, Part, entries
from quickdraft.export.emitters.hotpath_attention import (
    LAYOUT,
    MEMORY_LAYOUT,
    TARGET_LAYOUT,
    AttentionOps,
)
from quickdraft.export.emitters.hotpath_values import (
    Capped,
    Columns,
    Embedded,
    Normed,
    NormSpec,
    Product,
    Rotated,
    Stacked,
    Sum,
    Taken,
    Value,
    unsupported,
    use,
    width_of,
)
from quickdraft.export.emitters.hotpath_weights import PackedStore
from quickdraft.export.emitters.hotpath_writer import DOMAIN
from quickdraft.export.emitters.onnx_graph import DataFile, GraphBuilder
from quickdraft.export.ops import Activation, Rope
from quickdraft.export.quantize import WeightFormat
from quickdraft.export.weights import Weight, by_row, concat_rows, join_biases
from quickdraft.manifest import StepNames, Variant

DATA_ALIGNMENT = 64
"""A cache line, and the widest vector of the kernels."""


class HotpathOps(AttentionOps):
    """Emits one step of a model; `finish` writes it."""

    def __init__(self, graph: GraphBuilder, store: PackedStore, part: Part) -> None:
        super().__init__(graph, store, part)
        self._spec = part.spec
        self._wanted = set(part.hidden_states)
        self._top = min(part.top, part.spec.vocab_size)
        self._hidden: dict[int, str] = {}
        if not (self._encoder and part.features):
            self._tokens = graph.input("input_ids", ir.DataType.INT64, ["n"])
        if part.features:
            width = part.features
            self._features = graph.input("features", ir.DataType.FLOAT, ["n", width])
        if part.target is None:
            self._rows = graph.input("output_rows", ir.DataType.INT64, ["m"])
            self._full = graph.input("full_logits", ir.DataType.INT64, [1])

    # Inputs and outputs

    def tokens(self) -> Value:
        """Token ids, [n]."""
        return self._tokens

    def positions(self) -> Value:
        """Positions, [n]."""
        return self._positions

    def output_rows(self) -> Value:
        """Rows whose logits are wanted, [m]."""
        return self._rows

    def features(self) -> Value:
        """Vectors that come with the tokens, [n, width]."""
        return self._features

    def hidden_state(self, x: Value, layer: int) -> None:
        """Emit the residual stream if this layer was asked for."""
        if layer in self._wanted:
            name = f"hidden_states.{layer}"
            shape: list[int | str] = ["n", self._spec.hidden_size]
            self._graph.output(self._writer.value(use(x)), name, ir.DataType.FLOAT, shape)
            self._hidden[layer] = name

    def logits(self, x: Value) -> None:
        """The output head: norm, product, soft cap and the largest logits in one op."""
        cap = 0.0
        if isinstance(x, Capped):
            cap, x = x.cap, x.x
        if not isinstance(x, Product) or x.activation or x.up:
            raise unsupported("needs logits that are a matrix product")
        inner, norm = x.x, None
        if isinstance(inner, Normed):
            norm = inner.norm
            inner = inner.x
        if not isinstance(inner, Taken):
            raise unsupported("needs logits of the rows asked for only")
        weights, attributes = self._writer.matrix_product(x.weight, x.bias, norm)
        inputs = [*self._rows_of(inner), self._full, *weights]
        attributes |= {"top": self._top, "softcap": cap}
        results = self._writer.ops("HeadTopK", inputs, attributes, outputs=4)
        floats, top = ir.DataType.FLOAT, self._top
        self._graph.output(results[0], "top_values", floats, ["m", top])
        self._graph.output(results[1], "top_ids", ir.DataType.INT64, ["m", top])
        self._graph.output(results[2], "log_sum", floats, ["m"])
        self._graph.output(results[3], "logits", floats, ["full_m", self._spec.vocab_size])

    def _rows_of(self, x: Taken) -> tuple[ir.Value, ir.Value]:
        """A value and its rows that the head is to read: after a long prompt one row is, and what
        follows the last attention is computed for that one only."""
        early = self._writer.take_early(x.x, x.rows)
        if early is None:
            return self._writer.value(x.x), x.rows
        count = self._graph.one("Size", [x.rows])
        zero, one = (self._graph.constant(np.array(i, np.int64)) for i in (0, 1))
        return self._writer.value(early), self._graph.one("Range", [zero, count, one])

    def finish(self, path: Path) -> StepNames:
        """Write the graph and say how its tensors are called."""
        self._finish_caches()
        names = self._encoder_names() if self._encoder else self._step_names()
        self._graph.save(path, self._spec.family, DOMAIN)
        return names

    def _encoder_names(self) -> StepNames:
        part = self._part
        return StepNames(
            tokens="" if part.features else "input_ids",
            positions="position_ids",
            features="features" if part.features else None,
            source="source",
        )

    def _step_names(self) -> StepNames:
        names = StepNames(
            tokens="input_ids",
            positions="position_ids",
            hidden_states=self._hidden,
            ancestors="ancestors",
            past="past",
            features="features" if self._part.features else None,
            source=None if self._memory is None else "source",
        )
        if self._part.target is None:
            return replace(
                names,
                output_rows="output_rows",
                logits="logits",
                full_logits="full_logits",
                top_values="top_values",
                top_ids="top_ids",
                log_sum="log_sum",
                top=self._top,
            )
        return replace(names, target_past="target_past")

    # What is taken in by the op that uses it

    def embed(self, ids: Value, table: Weight) -> Value:
        """Rows of a table; vectors of positions are few and stay float32."""
        return Embedded(self._writer.value(ids), table, 1.0, keep_float=ids is self._positions)

    def take_rows(self, x: Value, rows: Value) -> Value:
        """Rows for the output head."""
        return Taken(use(x), self._writer.value(rows))

    def linear(self, x: Value, weight: Weight, bias: Weight | None = None) -> Value:
        """A product that may take in the norm before it and what comes after it."""
        return Product(use(x), weight, bias)

    def conv1d(self, x: Value, weight: Weight, bias: Weight | None, stride: int) -> Value:
        """A product with rows laid side by side, which a following activation may join."""
        return Product(self._writer.windows(use(x), weight.shape[2], stride), by_row(weight), bias)

    def linears(self, x: Value, pairs: Sequence[tuple[Weight, Weight | None]]) -> list[Value]:
        """Products of the same x, joined where the weights are stored alike."""
        alike: dict[str, list[int]] = {}
        for index, (weight, _) in enumerate(pairs):
            alike.setdefault(self._store.form(weight), []).append(index)
        results: dict[int, Value] = {}
        for indices in alike.values():
            chosen = [pairs[index] for index in indices]
            if len(chosen) == 1:
                results[indices[0]] = self.linear(x, *chosen[0])
                continue
            product = Product(use(x), concat_rows([w for w, _ in chosen]), join_biases(chosen))
            offset = 0
            for index, (weight, _) in zip(indices, chosen, strict=True):
                results[index] = Columns(product, offset, weight.shape[0])
                offset += weight.shape[0]
        return [results[index] for index in range(len(pairs))]

    def gated_mlp(
        self,
        x: Value,
        gate: Weight,
        up: Weight,
        down: Weight,
        kind: Activation,
        biases: tuple[Weight | None, Weight | None, Weight | None] = (None, None, None),
    ) -> Value:
        """Gate and up as one product where they are stored alike."""
        if self._store.form(gate) == self._store.form(up):
            bias = join_biases([(gate, biases[0]), (up, biases[1])])
            inner: Value = Product(use(x), gate, bias, kind, up)
        else:
            opened = Product(use(x), gate, biases[0], kind)
            inner = self.multiply(opened, Product(use(x), up, biases[1]))
        return Product(use(inner), down, biases[2])

    def rms_norm(self, x: Value, weight: Weight | None, eps: float, heads: int = 1) -> Value:
        """A norm that a following product may take in."""
        width = self._width(x, weight, heads)
        return Normed(use(x), NormSpec("rms", eps, width, weight), heads)

    def layer_norm(
        self, x: Value, weight: Weight | None, bias: Weight | None, eps: float, heads: int = 1
    ) -> Value:
        """A norm that a following product may take in."""
        width = self._width(x, weight, heads)
        return Normed(use(x), NormSpec("layer", eps, width, weight, bias), heads)

    def _width(self, x: Value, weight: Weight | None, heads: int) -> int:
        """Of a part of x; the residual stream is a value that does not tell."""
        if heads == 1 and weight is not None:
            return weight.shape[-1]
        width = width_of(x)
        return (self._spec.hidden_size if width is None else width) // heads

    def rope(self, x: Value, positions: Value, rope: Rope, heads: int) -> Value:
        """Left to attention."""
        return Rotated(use(x), rope)

    def activate(self, x: Value, kind: Activation) -> Value:
        """Taken in by the product before it. Ops of ONNX, whose bits depend on the rows beside,
        stand in elsewhere, where no answer rests on them."""
        if isinstance(x, Product) and not x.activation and not x.uses:
            return replace(x, activation=kind)
        if self._part.role not in ("drafter", "judge"):
            raise unsupported(f"needs {kind} to follow a matrix product")
        return self._writer.activate(self._writer.value(use(x)), kind)

    def add(self, a: Value, b: Value) -> Value:
        """A sum that its last term may take in; sums of sums become one."""
        terms: list[Value] = []
        for each in (a, b):
            alone = isinstance(each, Sum) and not each.uses
            terms += each.terms if isinstance(each, Sum) and alone else [use(each)]
        return Sum(tuple(terms))

    def scale(self, x: Value, factor: float) -> Value:
        """Taken in by an embedding, or by the weights of a norm."""
        if isinstance(x, Embedded) and not x.uses:
            return replace(x, scale=x.scale * factor)
        if isinstance(x, Normed) and not x.uses and x.norm.weight is not None:
            return replace(x, norm=x.norm.times(factor))
        constant = self._graph.constant(np.full(1, factor, np.float32))
        return self._graph.one("Mul", [self._writer.value(use(x)), constant])

    def multiply(self, a: Value, b: Value) -> Value:
        """Product of equal shapes."""
        return self._graph.one("Mul", [self._writer.value(use(a)), self._writer.value(use(b))])

    def softcap(self, x: Value, cap: float) -> Value:
        """Left to the output head."""
        return Capped(use(x), cap)

    def stack(self, parts: Sequence[Value]) -> Value:
        """Rows of several values; rows may be taken of all together."""
        return Stacked(tuple(use(part) for part in parts))


def emit_hotpath(request: EmitRequest) -> list[Variant]:
    """Write `onnx-hotpath/NAME.onnx` for every part, and `model.data`, the weights of all in kernel
    layout.

    Raises:
        UnsupportedModel: a part does something between our kernels that none of them takes in.
        BackendError: the checker found a graph invalid (a fault of ours).
    """
    folder = request.folder / "onnx-hotpath"
    folder.mkdir(exist_ok=True)
    data = DataFile(folder / "model.data", DATA_ALIGNMENT)
    try:
        built = [_build(part, part.fmt or request.fmt, data) for part in request.parts]
    finally:
        data.close()
    return [_finish(ops, part, folder, request) for ops, part in built]


def _build(part: Part, fmt: WeightFormat, data: DataFile) -> tuple[HotpathOps, Part]:
    graph = GraphBuilder(data)
    packed = PackedStore(graph, fmt, float_values=part.role == "encoder")
    ops = HotpathOps(graph, packed, part)
    part.build(ops)
    return ops, part


def _finish(ops: HotpathOps, part: Part, folder: Path, request: EmitRequest) -> Variant:
    model = folder / f"{part.name}.onnx"
    step = ops.finish(model)
    _check(model)
    return Variant(
        target_format="onnx",
        flavour="hotpath",
        weight_format=(part.fmt or request.fmt).name,
        model=f"onnx-hotpath/{part.name}.onnx",
        files=(f"onnx-hotpath/{part.name}.onnx", "onnx-hotpath/model.data"),
        step=step,
        cache=LAYOUT,
        memory=MEMORY_LAYOUT if step.source is not None else None,
        guarantee="bit_identical",
        **entries(part, request.folder, TARGET_LAYOUT),
    )


def _check(model: Path) -> None:
    """Form only: the checker does not know our ops, whose shapes the runtime infers."""
    import onnx

    try:
        onnx.checker.check_model(str(model))
    except onnx.checker.ValidationError as error:
        raise BackendError(f"the exported graph is not valid ONNX: {error}") from error
