"""Encoder-decoder models as OpenVINO graphs: an encoder, or a decoder that reads its memory.

A memory has a tensor of keys and one of values for every layer of the decoder, float32 [kv_heads,
rows, head_dim]: outputs of the encoder, inputs of the target, read as they are. Where their number
of rows is fixed, a bias masks those that the source does not fill.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from openvino import opset15 as opset

from quickdraft.errors import UnsupportedModel
from quickdraft.export.emitters.base import Part
from quickdraft.export.emitters.openvino_ops import (
    OpenVinoOps,
    by_head,
    integers,
    scalar,
    size_of,
)
from quickdraft.export.emitters.openvino_weights import Node, WeightStore, constant
from quickdraft.export.emitters.rows import Sizes
from quickdraft.export.ops import Attention, RelativeBias
from quickdraft.export.weights import Weight
from quickdraft.manifest import RowsLayout, StepNames

MEMORY_LAYOUT = RowsLayout(
    kind="rows",
    alignment=1,
    past_key="memory.{layer}.key",
    past_value="memory.{layer}.value",
    present_key="present_memory.{layer}.key",
    present_value="present_memory.{layer}.value",
)
SOURCE_WIDTHS = (64, 256, 1024)
"""Rows of the static graphs that read sources; a target reads memories of the last one's."""


def source_sizes(part: Part) -> dict[int, Sizes]:
    """Dimensions of the static graphs of an encoder, by rows of the memory that each puts out.
    part: the encoder, or its target.

    Raises:
        UnsupportedModel: its source is frames, of any number.
    """
    source = (part.target or part.spec).source
    assert source is not None  # an encoder-decoder model has one  # noqa: S101
    if source.fixed:
        rows = source.rows(source.length)
        return {rows: Sizes(rows, memory=rows, frames=source.length)}
    if source.width:
        # Zeros behind the last frame would no longer be zeros after the first convolution.
        raise UnsupportedModel(
            f"{part.spec.family} reads any number of frames, and openvino-static needs a fixed "
            "one; export it with --format openvino"
        )
    longest = min(source.length, SOURCE_WIDTHS[-1])
    every = (*(rows for rows in SOURCE_WIDTHS if rows < longest), longest)
    return {rows: Sizes(rows, memory=rows, frames=rows) for rows in every}


class OpenVinoSourceOps(OpenVinoOps):
    """Emits an encoder, or one step of its target."""

    def __init__(self, part: Part, store: WeightStore, sizes: Sizes) -> None:
        super().__init__(part, store, sizes)
        self._encodes = part.role == "encoder"
        self._relative: dict[RelativeBias, Node] = {}
        source = (part.target or part.spec).source
        self._masks = sizes.memory is not None and not (source is not None and source.fixed)

    def tokens(self) -> Node:
        """Token ids, [n]."""
        rows = self._sizes.frames if self._encodes else self._sizes.rows
        return self._input("input_ids", np.int64, [rows])

    def features(self) -> Node:
        """Frames in place of tokens, [n, width]; or vectors that come with these."""
        if not self._encodes:
            return super().features()
        return self._input("features", np.float32, [self._sizes.frames, self._part.features])

    def finish(self) -> tuple[Any, StepNames]:
        """The model, an openvino.Model, and how its tensors are called."""
        model, step = super().finish()
        names = self._ends.inputs
        return model, replace(
            step,
            tokens="input_ids" if "input_ids" in names else "",
            source="source_bias" if "source_bias" in names else None,
            distances="distances" if "distances" in names else None,
        )

    def encode_attend(self, q: Node, k: Node, v: Node, attention: Attention) -> Node:
        """Attention over the rows themselves."""
        a = attention
        keys, values = (by_head(rows, a) for rows in (k, v))
        bias = self._source_bias()
        if a.relative is not None:
            relative = self._by_distance(a.relative, a)
            bias = relative if bias is None else opset.add(relative, bias)
        return self._attended(q, keys, values, a, bias)

    def cross_attend(self, q: Node, attention: Attention) -> Node:
        """Attention over the memory of a layer."""
        a, layout = attention, MEMORY_LAYOUT
        shape = [a.num_kv_heads, self._sizes.memory, a.head_dim]
        names = (layout.past_key, layout.past_value)
        keys, values = (
            self._input(name.format(layer=a.layer), np.float32, shape) for name in names
        )
        return self._attended(q, keys, values, a, self._source_bias())

    def _attended(self, q: Node, keys: Node, values: Node, a: Attention, bias: Node | None) -> Node:
        scores = opset.matmul(self._query(q, a), keys, False, True)
        weights = self._softmax(scores, a, bias)
        return self._joined_heads(opset.matmul(weights, values, False, False), a)

    def stage(self, k: Node, v: Node, attention: Attention) -> None:
        """Put out the memory of a layer."""
        self._staged.add(attention.layer)
        self._present(k, v, attention, MEMORY_LAYOUT)

    def conv1d(self, x: Node, weight: Weight, bias: Weight | None, stride: int) -> Node:
        """A convolution over the last axis; its weights are few and stay float32."""
        columns = opset.unsqueeze(opset.transpose(x, integers([1, 0])), scalar(0))
        half = weight.shape[2] // 2
        found = opset.convolution(columns, constant(weight.dense()), [stride], [half], [half], [1])
        rows = opset.transpose(opset.squeeze(found, scalar(0)), integers([1, 0]))
        return rows if bias is None else opset.add(rows, self._store.vector(bias))

    # Biases of scores

    def _source_bias(self) -> Node | None:
        """0 for rows of the memory that the source fills, [1, rows]; None where it fills all."""
        if not self._masks:
            return None
        return self._input("source_bias", np.float32, [1, self._sizes.memory])

    def _score_bias(self, a: Attention) -> Node:
        """The mask, and in rows that are seen the bias of their distance."""
        mask = self._bias(a.window)
        return mask if a.relative is None else opset.add(self._by_distance(a.relative, a), mask)

    def _by_distance(self, relative: RelativeBias, a: Attention) -> Node:
        """Biases by distance, [kv_heads, group, n, rows seen]; shared by all layers."""
        if relative not in self._relative:
            reach, distances = relative.max_distance, self._distances()
            near = opset.clamp(distances, -reach, reach)
            index = opset.add(near, scalar(reach))
            table = constant(relative.by_distance().dense())
            rows = opset.gather(table, index, scalar(1))
            heads = integers([a.num_kv_heads, a.num_heads // a.num_kv_heads, -1])
            shape = opset.concat([heads, size_of(distances, 1)], 0)
            self._relative[relative] = opset.reshape(rows, shape, False)
        return self._relative[relative]

    def _distances(self) -> Node:
        """Positions of what is seen less those of the rows, int64 [n, rows seen]."""
        if not self._encodes:
            return self._input("distances", np.int64, [self._sizes.rows, self._sizes.seen])
        row, column = (opset.unsqueeze(self._positions, scalar(axis)) for axis in (0, 1))
        return opset.subtract(row, column)
