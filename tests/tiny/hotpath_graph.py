"""A hotpath graph run by the NumPy twins of its ops, without native code: the first step of a
conversation, a chain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from quickdraft import hotpath_ops, numpy_ops
from quickdraft.hotpath_ops import Matrix, Norm

Array = np.ndarray
Inputs = list[Array | None]


def load(model: Path) -> onnx.GraphProto:
    """The graph with its weights."""
    return onnx.load(str(model)).graph


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """By name; texts as str."""
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}


def run_chain(
    graph: onnx.GraphProto, tokens: Array, rows: Array, features: Array | None = None
) -> dict[str, Array]:
    """Every named value of a first step."""
    values: dict[str, Any] = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    values["input_ids"], values["output_rows"] = tokens, rows
    if features is not None:
        values["features"] = features
    values["position_ids"] = np.arange(len(tokens))
    for name in ("ancestors", "past", "full_logits", "cache", "target_past", "target_cache"):
        values[name] = np.zeros(0)
    for node in graph.node:
        inputs = [values[name] if name else None for name in node.input]
        outputs = OPS[node.op_type](inputs, attributes(node))
        values.update(zip(node.output, outputs, strict=False))
    return values


def _get(inputs: Inputs, index: int) -> Array | None:
    return inputs[index] if index < len(inputs) else None


def _before(inputs: Inputs, a: Mapping[str, Any], first: int) -> Norm:
    eps = a.get("norm_eps", 0.0)
    return Norm(a["norm"], eps, _get(inputs, first), _get(inputs, first + 1))


def _matrix(data: Any, a: Mapping[str, Any]) -> Matrix:
    return Matrix(data, a["format"], a["n"], a["k"], bool(a.get("gated", 0)))


def _q_linear(inputs: Inputs, a: Mapping[str, Any]) -> list[Array]:
    x, data = inputs[:2]
    extra = (_get(inputs, 2), _get(inputs, 3), _before(inputs, a, 4))
    return [hotpath_ops.q_linear(x, _matrix(data, a), *extra, a["activation"])]


def _norm(inputs: Inputs, a: Mapping[str, Any]) -> list[Array]:
    how = Norm(a["kind"], a["eps"], _get(inputs, 1), _get(inputs, 2))
    if how.weight is not None:
        assert len(how.weight) == a["width"] * (a["heads"] if a["per_head"] else 1)
    parts = (a["heads"], a["width"], a["offset"])
    return [hotpath_ops.norm(inputs[0], how, *parts, _get(inputs, 3))]


def _head(inputs: Inputs, a: Mapping[str, Any]) -> list[Array]:
    x, rows, _, data = inputs[:4]
    extra = (_get(inputs, 4), _before(inputs, a, 5), a["softcap"])
    return list(hotpath_ops.head_top_k(x, rows, _matrix(data, a), a["top"], *extra))


def _rotate(x: Array, table: Array | None, heads: int) -> Array:
    if table is None:
        return x
    cosine, sine = table[:, None, 0], table[:, None, 1]
    pairs = table.shape[2]
    parts = x.reshape(len(x), heads, -1)
    first, second, rest = np.split(parts, [pairs, 2 * pairs], axis=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine, rest)
    return np.concatenate(turned, axis=-1).reshape(x.shape)


def _attention(inputs: Inputs, a: Mapping[str, Any]) -> list[Array]:
    table, n = _get(inputs, 7), len(inputs[0])
    parts = []
    for index, (name, heads) in enumerate(
        zip("qkv", ("heads", "kv_heads", "kv_heads"), strict=True)
    ):
        start = a[f"{name}_offset"]
        parts.append(inputs[index][:, start : start + a[heads] * a["head_dim"]])
    q, k = (_rotate(parts[i], table, a[heads]) for i, heads in enumerate(("heads", "kv_heads")))
    distance = np.arange(n)[:, None] - np.arange(n)
    seen = (distance >= 0) & (distance < (a["window"] or n))
    bias = np.where(seen, 0, -np.inf).astype(np.float32)
    cache = tuple(np.zeros((n, a["kv_heads"], a["head_dim"]), np.float32) for _ in range(2))
    scores = (a["scale"], a["softcap"] or None)
    y = numpy_ops.attend(q, k, parts[2], cache, np.arange(n), bias, *scores)
    return [y, inputs[6]]


def _slice(inputs: Inputs, a: Mapping[str, Any]) -> list[Array]:
    x, start, end, axis = inputs
    assert axis[0] == 1
    return [x[:, start[0] : end[0]]]


OPS: Mapping[str, Callable[[Inputs, Mapping[str, Any]], list[Array]]] = {
    "Embed": lambda i, a: [hotpath_ops.embed(i[0], _matrix(i[1], a), a["scale"])],
    "QLinear": _q_linear,
    "Norm": _norm,
    "RopeTable": lambda i, a: [hotpath_ops.rope_table(i[0], i[1], a["factor"])],
    "TreeAttention": _attention,
    "KvWrite": lambda i, a: [i[3]],
    "HeadTopK": _head,
    "Add": lambda i, a: [i[0] + i[1]],
    "Mul": lambda i, a: [i[0] * i[1]],
    "Concat": lambda i, a: [np.concatenate(i)],  # type: ignore[arg-type]
    "Gather": lambda i, a: [i[0][i[1]]],
    "Size": lambda i, a: [np.array(i[0].size)],
    "Range": lambda i, a: [np.arange(i[0], i[1], i[2])],
    "Identity": lambda i, a: list(i),
    "Slice": _slice,
}
