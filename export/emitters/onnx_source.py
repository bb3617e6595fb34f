"""Encoder-decoder models as portable ONNX: an encoder, or a decoder that reads its memory.

A memory has a tensor of keys and one of values for every layer of the decoder, float32
[rows, kv_heads, head_dim]: outputs of the encoder, inputs of the target, read as they are.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from quickdraft.export.emitters.base import Part, check_staged
from quickdraft.export.emitters.onnx_graph import GraphBuilder
from quickdraft.export.emitters.onnx_ops import OnnxOps, Value
from quickdraft.export.emitters.onnx_weights import WeightStore
from quickdraft.export.ops import Attention, RelativeBias
from quickdraft.export.weights import Weight, by_row
from quickdraft.manifest import SlotsLayout, StepNames

MEMORY_LAYOUT = SlotsLayout(
    kind="slots",
    alignment=1,
    past_key="memory.{layer}.key",
    past_value="memory.{layer}.value",
    present_key="present_memory.{layer}.key",
    present_value="present_memory.{layer}.value",
)


class OnnxSourceOps(OnnxOps):
    """Emits an encoder, or one step of its target; `finish` writes it."""

    def __init__(self, graph: GraphBuilder, store: WeightStore, part: Part) -> None:
        self._encoder = part.role == "encoder"
        self._distances: ir.Value | None = None
        if not self._encoder:
            super().__init__(graph, store, part)
            return
        self._open(graph, store, part)
        self._staged = set()
        if part.features:
            shape: list[int | str] = ["n", part.features]
            self._features = graph.input("features", ir.DataType.FLOAT, shape)
        else:
            self._tokens = graph.input("input_ids", ir.DataType.INT64, ["n"])
        self._positions = graph.input("position_ids", ir.DataType.INT64, ["rows"])
        self._position_row = graph.one("Unsqueeze", [self._positions, graph.constant([0])])

    def finish(self, path: Path) -> StepNames:
        """Write the graph and say how its tensors are called."""
        if not self._encoder:
            used = None if self._distances is None else "distances"
            return replace(super().finish(path), distances=used)
        check_staged(self._part, self._staged)
        self._graph.save(path, self._spec.family)
        return StepNames(
            tokens="" if self._part.features else "input_ids",
            positions="position_ids",
            features="features" if self._part.features else None,
        )

    def encode_attend(self, q: Value, k: Value, v: Value, attention: Attention) -> Value:
        """Attention over the rows themselves."""
        a, shape = attention, [-1, attention.num_kv_heads, attention.head_dim]
        keys, values = (self._reshape(self._value(x), shape) for x in (k, v))
        if a.relative is None:
            return self._mix(q, keys, values, a, None)
        relative = a.relative
        return self._mix(q, keys, values, a, lambda group: self._relative(relative, a, group))

    def cross_attend(self, q: Value, attention: Attention) -> Value:
        """Attention over the memory of a layer."""
        a, layout = attention, MEMORY_LAYOUT
        shape: list[int | str] = ["memory_rows", a.num_kv_heads, a.head_dim]
        keys, values = (
            self._graph.input(name.format(layer=a.layer), ir.DataType.FLOAT, shape)
            for name in (layout.past_key, layout.past_value)
        )
        return self._mix(q, keys, values, a, None)

    def stage(self, k: Value, v: Value, attention: Attention) -> None:
        """In an encoder, put out the memory of a layer."""
        if not self._encoder:
            super().stage(k, v, attention)
            return
        a, layout = attention, MEMORY_LAYOUT
        self._staged.add(a.layer)
        shape: list[int | str] = ["memory_rows", a.num_kv_heads, a.head_dim]
        for x, name in ((k, layout.present_key), (v, layout.present_value)):
            value = self._reshape(self._value(x), [-1, a.num_kv_heads, a.head_dim])
            self._graph.output(value, name.format(layer=a.layer), ir.DataType.FLOAT, shape)

    def conv1d(self, x: Value, weight: Weight, bias: Weight | None, stride: int) -> Value:
        """A product with rows laid side by side, zeros where there are none."""
        graph, width = self._graph, weight.shape[2]
        half, end = width // 2, np.iinfo(np.int64).max
        pads = graph.constant([0, half, 0, 0, half, 0])
        padded = graph.one("Pad", [self._value(x), pads])
        axis, step = graph.constant([1]), graph.constant([stride])
        taps = []
        for tap in range(width):
            last = graph.constant([tap + 1 - width if tap + 1 < width else end])
            taps.append(graph.one("Slice", [padded, graph.constant([tap]), last, axis, step]))
        rows = graph.one("Concat", taps, {"axis": 2})
        return self._store.linear(rows, by_row(weight), bias)

    # Relative positions

    def _score_bias(self, attention: Attention, group: int) -> ir.Value:
        """The mask, and in rows that are seen the bias of their distance."""
        mask = self._bias(attention.window, group)
        if attention.relative is None:
            return mask
        key = ("masked", attention.relative, attention.window, group)
        if key not in self._memo:
            relative = self._relative(attention.relative, attention, group)
            self._memo[key] = self._graph.one("Add", [relative, mask])
        return self._memo[key]

    def _relative(self, relative: RelativeBias, a: Attention, group: int) -> ir.Value:
        """Biases by distance, [kv_heads, n * group, rows seen]; shared by all layers."""
        key = ("relative", relative, group)
        if key in self._memo:
            return self._memo[key]
        graph, reach = self._graph, relative.max_distance
        limits = [graph.constant(np.array(limit)) for limit in (-reach, reach)]
        near = graph.one("Clip", [self._distance(), *limits])
        index = graph.one("Add", [near, graph.constant([reach])])
        own = a.num_heads // a.num_kv_heads
        table = relative.by_distance()
        values = table.dense().reshape(a.num_kv_heads, own, -1)
        stored = graph.find(table.name) or graph.weight(table.name, values)
        rows = graph.one("Gather", [stored, index], {"axis": 2})
        rows = graph.one("Transpose", [rows], {"perm": [0, 2, 1, 3]})
        if group > own:  # heads that are computed twice
            rows = graph.one("Concat", [rows] * (group // own), {"axis": 2})
        seen = graph.one("Shape", [index], {"start": 1, "end": 2})
        shape = graph.one("Concat", [graph.constant([a.num_kv_heads, -1]), seen], {"axis": 0})
        self._memo[key] = graph.one("Reshape", [rows, shape])
        return self._memo[key]

    def _distance(self) -> ir.Value:
        """Positions of what is seen less those of the rows, int64 [n, rows seen]."""
        if self._distances is None:
            graph = self._graph
            if self._encoder:
                column = graph.one("Unsqueeze", [self._positions, graph.constant([1])])
                self._distances = graph.one("Sub", [self._position_row, column])
            else:
                self._distances = graph.input("distances", ir.DataType.INT64, ["n", "slots"])
        return self._distances
