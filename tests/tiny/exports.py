"""Folders as other tools export them, of a decoder small enough to write by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tiny.checkpoint import tiny_tokenizer_json

VOCAB, WIDTH, CONTEXT = 330, 8, 160
KEY, VALUE = "past_key_values.0.key", "past_key_values.0.value"
CONFIG = {
    "model_type": "handmade",
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "hidden_size": WIDTH,
    "max_position_embeddings": CONTEXT,
    "eos_token_id": 2,
}
Array = NDArray[np.float32]


def weights() -> dict[str, Array]:
    """The decoder: logits = (h + attention(h, K, V)) table', with h the rows of a table."""
    rng = np.random.default_rng(7)
    shapes = {"table": (VOCAB, WIDTH), "wk": (WIDTH, WIDTH), "wv": (WIDTH, WIDTH)}
    return {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}


def expected(tokens: NDArray[np.int64]) -> Array:
    """Logits of a text, all at once: float32 [n, VOCAB]."""
    w = weights()
    h = w["table"][tokens]
    scores = np.where(np.tri(len(h), dtype=bool), h @ (h @ w["wk"]).T, -1e9)
    p = np.exp(scores - scores.max(1, keepdims=True))
    mixed = (p / p.sum(1, keepdims=True)) @ (h @ w["wv"])
    return np.asarray((h + mixed) @ w["table"].T, np.float32)


def graph(
    *, past: bool = True, causal: bool = True, inputs: tuple[str, ...] = ()
) -> onnx.ModelProto:
    """The decoder with optimum's names. past: whether it reads keys and values; it always gives
    them. causal: False for one traced with a single token. inputs: more of them, which it ignores.
    """
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "input_ids"], ["h"]),
        node("MatMul", ["h", "wk"], ["k3"]),
        node("MatMul", ["h", "wv"], ["v3"]),
        node("Unsqueeze", ["k3", "one"], ["k"]),
        node("Unsqueeze", ["v3", "one"], ["v"]),
        node("Unsqueeze", ["h", "one"], ["q"]),
        node("Concat", [KEY, "k"] if past else ["k"], ["present.0.key"], axis=2),
        node("Concat", [VALUE, "v"] if past else ["v"], ["present.0.value"], axis=2),
        node("Transpose", ["present.0.key"], ["kt"], perm=[0, 1, 3, 2]),
        node("MatMul", ["q", "kt"], ["scores"]),
        node("Shape", ["present.0.key"], ["total"], start=2, end=3),
        node("Squeeze", ["total", "zero"], ["end"]),
        node("Range", ["start", "end", "step"], ["columns"]),
        node("Unsqueeze", ["position_ids", "two"], ["rows"]),
        node("LessOrEqual", ["columns", "rows"], ["seen"]),
        node("Unsqueeze", ["seen", "one"], ["seen4"]),
        node("Where", ["seen4", "scores", "low"], ["masked"]),
        node("Softmax", ["masked" if causal else "scores"], ["p"], axis=-1),
        node("MatMul", ["p", "present.0.value"], ["mixed4"]),
        node("Squeeze", ["mixed4", "one"], ["mixed"]),
        node("Add", ["h", "mixed"], ["out"]),
        node("Transpose", ["table"], ["head"], perm=[1, 0]),
        node("MatMul", ["out", "head"], ["logits"]),
    ]
    constants: dict[str, Any] = {
        "zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "start": np.array(0),
        "step": np.array(1), "low": np.float32(-1e9).reshape(()), **weights(),
    }  # fmt: skip
    value = helper.make_tensor_value_info
    cache = [1, 1, "past_sequence_length", WIDTH]
    after = [1, 1, "total_sequence_length", WIDTH]
    feeds = [
        value(name, TensorProto.INT64, ["batch", "n"]) for name in ("input_ids", "position_ids")
    ]
    feeds.append(value("attention_mask", TensorProto.INT64, ["batch", "total"]))
    feeds += [value(name, TensorProto.BOOL, [1]) for name in inputs]
    if past:
        feeds += [value(name, TensorProto.FLOAT, cache) for name in (KEY, VALUE)]
    results = [value("logits", TensorProto.FLOAT, ["batch", "n", VOCAB])]
    results += [value(f"present.0.{kind}", TensorProto.FLOAT, after) for kind in ("key", "value")]
    made = helper.make_graph(
        nodes, "decoder", feeds, results,
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )  # fmt: skip
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def write_optimum(folder: Path, **graphs: onnx.ModelProto) -> Path:
    """A folder of optimum. graphs: by name of the file, less `.onnx`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in graphs.items():
        onnx.save(model, folder / f"{name}.onnx")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_bytes(tiny_tokenizer_json())
    return folder


def write_openvino(folder: Path) -> Path:
    """A folder of optimum-intel: the same decoder, stateful."""
    import openvino as ov
    from openvino import opset13 as ops
    from openvino.op.util import Variable, VariableInfo

    w = weights()
    ids, mask, places, beams = (
        ops.parameter(shape, kind, name=name)
        for name, shape, kind in (
            ("input_ids", [-1, -1], ov.Type.i64), ("attention_mask", [-1, -1], ov.Type.i64),
            ("position_ids", [-1, -1], ov.Type.i64), ("beam_idx", [-1], ov.Type.i32),
        )
    )  # fmt: skip
    for parameter in (ids, mask, places, beams):
        parameter.output(0).set_names({parameter.friendly_name})
    table = ops.constant(w["table"])
    h = ops.gather(table, ids, ops.constant(0))
    states, sinks = [], []
    for kind, matrix in (("key", w["wk"]), ("value", w["wv"])):
        info = VariableInfo()
        info.data_shape, info.data_type = ov.PartialShape([-1, 1, -1, WIDTH]), ov.Type.f32
        info.variable_id = f"past_key_values.0.{kind}present.0.{kind}"
        variable = Variable(info)
        empty = ops.constant(np.zeros((1, 1, 0, WIDTH), np.float32))
        read = ops.gather(ops.read_value(empty, variable), beams, ops.constant(0))
        new = ops.unsqueeze(ops.matmul(h, ops.constant(matrix), False, False), ops.constant(1))
        states.append(ops.concat([read, new], 2))
        sinks.append(ops.assign(states[-1], variable))
    scores = ops.matmul(ops.unsqueeze(h, ops.constant(1)), states[0], False, True)
    total = ops.gather(ops.shape_of(mask), ops.constant(1), ops.constant(0))
    columns = ops.range(ops.constant(np.int64(0)), total, ops.constant(np.int64(1)), ov.Type.i64)
    seen = ops.less_equal(columns, ops.unsqueeze(places, ops.constant(2)))
    masked = ops.select(
        ops.unsqueeze(seen, ops.constant(1)), scores, ops.constant(np.float32(-1e9))
    )
    mixed = ops.squeeze(
        ops.matmul(ops.softmax(masked, -1), states[1], False, False), ops.constant(1)
    )
    logits = ops.matmul(ops.add(h, mixed), table, False, True)
    result = ops.result(logits)
    result.output(0).set_names({"logits"})
    model = ov.Model([result], sinks, [ids, mask, places, beams], "decoder")
    folder.mkdir(parents=True, exist_ok=True)
    ov.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_bytes(tiny_tokenizer_json())
    return folder
