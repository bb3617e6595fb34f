"""The op protocol as a stateful OpenVINO graph, fed as OpenVINO GenAI feeds it.

Keys and values are variables of the graph, [batch, kv_heads, rows, head_dim], in the order that
`beam_idx` gives to the batch, as optimum-intel writes them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from openvino import opset15 as opset
from openvino.op.util import Variable, VariableInfo

from quickdraft.errors import UnsupportedModel
from quickdraft.export.emitters.base import Part
from quickdraft.export.emitters.openvino_ops import OpenVinoOps, integers, scalar, size_of
from quickdraft.export.emitters.openvino_weights import Node, WeightStore, constant
from quickdraft.export.emitters.rows import Sizes
from quickdraft.export.ops import Attention
from quickdraft.manifest import StepNames


class OpenVinoGenAiOps(OpenVinoOps):
    """A step over states: rows of all sequences of a batch, one after another."""

    def __init__(self, part: Part, store: WeightStore) -> None:
        super().__init__(part, store, Sizes())
        self._sinks: list[Node] = []
        self._masks: dict[int | None, Node] = {}
        self._mask = self._input("attention_mask", np.int64, [None, None])
        self._beams = self._input("beam_idx", np.int32, [None])
        self._ids = self._input("input_ids", np.int64, [None, None])
        self._grid = opset.shape_of(self._ids, "i64")

    def _input(self, name: str, kind: Any, shape: Any) -> Node:
        """Positions come in a batch, and are seen flat by what computes with them."""
        if name == "position_ids":
            table = super()._input(name, kind, [None, None])
            return opset.reshape(table, integers([-1]), False)
        return super()._input(name, kind, shape)

    def tokens(self) -> Node:
        """Token ids, [n] of the whole batch."""
        return opset.reshape(self._ids, integers([-1]), False)

    def output_rows(self) -> Node:
        """All rows; `take_rows` knows this value."""
        return self._ids

    def take_rows(self, x: Node, rows: Node) -> Node:
        """All of them where all are wanted."""
        return x if rows is self._ids else super().take_rows(x, rows)

    def logits(self, x: Node) -> None:
        """Name the result, [batch, rows, vocabulary]."""
        shape = opset.concat([self._grid, integers([self._part.spec.vocab_size])], 0)
        self._output(opset.reshape(x, shape, False), "logits")

    def attend(self, q: Node, k: Node, v: Node, attention: Attention) -> Node:
        """The one op that plugins know, over the states and the rows of the step.

        Raises:
            UnsupportedModel: scores are capped or have a bias by distance, which it does not do.
        """
        a = attention
        if a.softcap is not None or a.relative is not None:
            raise UnsupportedModel("the format 'openvino-genai' has no capped or biased scores")
        keys = self._state(k, a, "key")
        values = self._state(v, a, "value")
        query = self._heads(q, a.num_heads, a.head_dim)
        scale = constant(np.array(a.scale, np.float32))
        group = a.num_heads // a.num_kv_heads
        keys, values = (self._repeat(x, a, group) for x in (keys, values))
        mixed = opset.scaled_dot_product_attention(
            query, keys, values, self._seen(a.window), scale, causal=False
        )
        mixed = opset.transpose(mixed, integers([0, 2, 1, 3]))
        return opset.reshape(mixed, integers([-1, a.num_heads * a.head_dim]), False)

    def _heads(self, rows: Node, heads: int, width: int) -> Node:
        """[batch * n, heads * width] to [batch, heads, n, width]."""
        shape = opset.concat([self._grid, integers([heads, width])], 0)
        return opset.transpose(opset.reshape(rows, shape, False), integers([0, 2, 1, 3]))

    def _state(self, rows: Node, a: Attention, kind: str) -> Node:
        """Rows of the past in the order of the beams, and those of the step, which are kept."""
        info = VariableInfo()
        info.data_shape = ov.PartialShape([-1, a.num_kv_heads, -1, a.head_dim])
        info.data_type = ov.Type.f32
        info.variable_id = f"past_key_values.{a.layer}.{kind}present.{a.layer}.{kind}"
        variable = Variable(info)
        batch = opset.gather(self._grid, integers([0]), scalar(0))
        shape = opset.concat([batch, integers([a.num_kv_heads, 0, a.head_dim])], 0)
        empty = opset.broadcast(constant(np.array(0, np.float32)), shape)
        past = opset.gather(opset.read_value(empty, variable), self._beams, scalar(0))
        joined = opset.concat([past, self._heads(rows, a.num_kv_heads, a.head_dim)], 2)
        self._sinks.append(opset.assign(joined, variable))
        return joined

    def _repeat(self, x: Node, a: Attention, group: int) -> Node:
        """Each KV head for all heads that share it."""
        if group == 1:
            return x
        batch, rows = size_of(x, 0), size_of(x, 2)
        width = integers([a.head_dim])
        shape = opset.concat([batch, integers([a.num_kv_heads, group]), rows, width], 0)
        wide = opset.broadcast(opset.unsqueeze(x, scalar(2)), shape)
        joined = opset.concat([batch, integers([a.num_heads]), rows, width], 0)
        return opset.reshape(wide, joined, False)

    def _seen(self, window: int | None) -> Node:
        """0 where a row sees another and a large negative number elsewhere, [batch, 1, n, all]."""
        if window not in self._masks:
            total = opset.squeeze(size_of(self._mask, 1), scalar(0))
            rows = opset.squeeze(size_of(self._ids, 1), scalar(0))
            zero, one = (opset.squeeze(scalar(value), scalar(0)) for value in (0, 1))
            columns = opset.range(zero, total, one, "i64")
            own = opset.range(opset.subtract(total, rows), total, one, "i64")
            own = opset.unsqueeze(own, scalar(1))
            seen = opset.less_equal(columns, own)
            if window is not None:
                recent = opset.less(opset.subtract(own, columns), scalar(window))
                seen = opset.logical_and(seen, recent)
            filled = opset.unsqueeze(opset.convert(self._mask, "boolean"), integers([1, 2]))
            both = opset.logical_and(seen, filled)
            low = constant(np.array(np.finfo(np.float32).min, np.float32))
            self._masks[window] = opset.select(both, constant(np.array(0, np.float32)), low)
        return self._masks[window]

    def finish(self) -> tuple[Any, StepNames]:
        """The model, an openvino.Model, and how its tensors are called."""
        result = opset.result(self._ends.outputs["logits"])
        result.set_friendly_name("logits")
        result.output(0).set_names({"logits"})
        inputs = list(self._ends.inputs.values())
        model = ov.Model([result], self._sinks, inputs, self._part.spec.family)
        return model, StepNames(
            tokens="input_ids",
            positions="position_ids",
            logits="logits",
            mask="attention_mask",
            beams="beam_idx",
        )
