"""Attention of the hot path: its ops, and the caches and memories that pass through them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from quickdraft.errors import BackendError
from quickdraft.export.emitters.base import Part, check_staged
from quickdraft.export.emitters.hotpath_values import Rotated, Value, unsupported
from quickdraft.export.emitters.hotpath_weights import PackedStore
from quickdraft.export.emitters.hotpath_writer import HotpathWriter
from quickdraft.export.emitters.onnx_graph import GraphBuilder
from quickdraft.export.ops import Attention, RelativeBias, Rope
from quickdraft.manifest import BlocksLayout

LAYOUT = BlocksLayout(kind="blocks", alignment=16, cache="cache", present="present_cache")
TARGET_LAYOUT = BlocksLayout(
    kind="blocks", alignment=16, cache="target_cache", present="present_target_cache"
)
"""The cache that a predictor writes."""
MEMORY_LAYOUT = BlocksLayout(kind="blocks", alignment=16, cache="memory", present="present_memory")
"""What an encoder writes, and the target only reads."""


class AttentionOps:
    """The ops of the protocol that attend or stage.

    A step reads and writes the cache of its part. A predictor also fills the target's cache; an
    encoder fills a memory, and nothing else. The target of an encoder reads a memory.
    """

    def __init__(self, graph: GraphBuilder, store: PackedStore, part: Part) -> None:
        self._graph = graph
        self._store = store
        self._writer = HotpathWriter(graph, store)
        self._part = part
        self._encoder = part.role == "encoder"
        self._layers = 0
        self._staged: set[int] = set()
        self._memory: tuple[ir.Value, ir.Value] | None = None
        rows = "memory_rows" if self._encoder else "n"
        self._positions = graph.input("position_ids", ir.DataType.INT64, [rows])
        if not self._encoder:
            self._ancestors = graph.input("ancestors", ir.DataType.INT32, ["n", "depths"])
            self._past = graph.input("past", ir.DataType.INT64, [3])
            self._cache = graph.input(LAYOUT.cache, ir.DataType.UINT8, ["cache_bytes"])
        if part.target is not None:
            self._filled = MEMORY_LAYOUT if self._encoder else TARGET_LAYOUT
            name = "source" if self._encoder else "target_past"
            self._filled_past = graph.input(name, ir.DataType.INT64, [3])
            self._filled_cache = self._buffer(self._filled)

    def _buffer(self, layout: BlocksLayout) -> ir.Value:
        return self._graph.input(layout.cache, ir.DataType.UINT8, [f"{layout.cache}_bytes"])

    def _finish_caches(self) -> None:
        """Put out what was written."""
        if not self._encoder:
            # Without attention the cache is passed on: one name cannot be an input and an output.
            cache = self._cache if self._layers else self._graph.one("Identity", [self._cache])
            self._graph.output(cache, LAYOUT.present, ir.DataType.UINT8, ["cache_bytes"])
        if self._part.target is not None:
            check_staged(self._part, self._staged)
            shape: list[int | str] = [f"{self._filled.cache}_bytes"]
            name = self._filled.present
            self._graph.output(self._filled_cache, name, ir.DataType.UINT8, shape)

    def attend(self, q: Value, k: Value, v: Value, attention: Attention) -> Value:
        """TreeAttention; q, k and v may be columns of one joined product."""
        a = attention
        if a.layer != self._layers:
            raise BackendError(f"attention of layer {a.layer} comes after {self._layers} others")
        self._layers += 1
        rope = _shared_rope(q, k)
        inputs, attributes = self._columns(q=q, k=k, v=v)
        attributes |= _place(a, self._part.spec.num_kv_heads) | {
            "heads": a.num_heads,
            "scale": float(a.scale),
            "window": a.window or 0,
            "softcap": float(a.softcap or 0),
        }
        table = self._writer.rope_table(rope, self._positions)
        inputs += [self._positions, self._ancestors, self._past, self._cache, table, None]
        attributes |= self._relative(a.relative, inputs)
        y, self._cache = self._writer.ops("TreeAttention", inputs, attributes, outputs=2)
        return y

    def encode_attend(self, q: Value, k: Value, v: Value, attention: Attention) -> Value:
        """EncodeAttention; q, k and v may be columns of one joined product."""
        a = attention
        if a.softcap or a.window:
            raise unsupported("has no window and no soft cap in an encoder")
        rope = _shared_rope(q, k)
        inputs, attributes = self._columns(q=q, k=k, v=v)
        attributes |= {
            "heads": a.num_heads,
            "kv_heads": a.num_kv_heads,
            "head_dim": a.head_dim,
            "scale": float(a.scale),
        }
        inputs.append(self._writer.rope_table(rope, self._positions))
        attributes |= self._relative(a.relative, inputs)
        return self._writer.ops("EncodeAttention", inputs, attributes)[0]

    def cross_attend(self, q: Value, attention: Attention) -> Value:
        """CrossAttention over the memory, which is an input of its own."""
        a = attention
        if a.softcap:
            raise unsupported("has no soft cap over a memory")
        if self._memory is None:
            source = self._graph.input("source", ir.DataType.INT64, [3])
            self._memory = source, self._buffer(MEMORY_LAYOUT)
        inputs, attributes = self._columns(q=q)
        attributes |= _place(a, (self._part.memory or self._part.spec).num_kv_heads)
        attributes |= {"heads": a.num_heads, "scale": float(a.scale)}
        return self._writer.ops("CrossAttention", [*inputs, *self._memory], attributes)[0]

    def _relative(
        self, relative: RelativeBias | None, inputs: list[ir.Value | None]
    ) -> dict[str, Any]:
        """Append the input, and give the attribute."""
        if relative is None:
            return {}
        inputs.append(self._store.relative(relative))
        return {"reach": relative.max_distance}

    def stage(self, k: Value, v: Value, attention: Attention) -> None:
        """KvWrite into the target's cache, or in an encoder into the memory; k and v may be columns
        of one joined product."""
        a, target = attention, self._part.target
        if target is None:
            raise BackendError(f"{self._part.name} is no predictor, and stages rows of the target")
        if a.layer in self._staged:
            raise BackendError(f"{self._part.name} stages layer {a.layer} twice")
        self._staged.add(a.layer)
        rope = k.rope if isinstance(k, Rotated) else None
        inputs, attributes = self._columns(k=k, v=v)
        attributes |= _place(a, target.num_kv_heads)
        table = self._writer.rope_table(rope, self._positions)
        inputs += [self._filled_past, self._filled_cache, table]
        self._filled_cache = self._writer.ops("KvWrite", inputs, attributes)[0]

    def _columns(self, **values: Value) -> tuple[list[ir.Value | None], dict[str, Any]]:
        """Inputs and their offsets, as attributes; rotations are left to the op."""
        inputs: list[ir.Value | None] = []
        offsets = {}
        for name, x in values.items():
            value, offset = self._writer.columns(x.x if isinstance(x, Rotated) else x)
            inputs.append(value)
            offsets[f"{name}_offset"] = offset
        return inputs, offsets


def _shared_rope(q: Value, k: Value) -> Rope | None:
    rope = q.rope if isinstance(q, Rotated) else None
    if (k.rope if isinstance(k, Rotated) else None) != rope:
        raise unsupported("rotates queries and keys alike")
    return rope


def _place(a: Attention, kv_heads: Sequence[int]) -> dict[str, Any]:
    """Where the layer lies in a cache of so many heads by layer."""
    return {
        "kv_heads": a.num_kv_heads,
        "head_dim": a.head_dim,
        "kv_heads_before": sum(kv_heads[: a.layer]),
        "kv_heads_total": sum(kv_heads),
    }
