"""ONNX models of one node of the domain `quickdraft`, and one sound example of each op."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from tiny.kernel_calls import matrix, tree

from quickdraft.hotpath_attention import kv_head_bytes
from quickdraft.runtime.backends.hotpath import THREADS_KEY
from quickdraft.runtime.native import library_path

DOMAIN = "quickdraft"
INPUTS = {
    "QLinear": ("x", "weights", "bias", "residual", "norm_weight", "norm_bias"),
    "Norm": ("x", "weight", "bias", "residual"),
    "RopeTable": ("positions", "frequencies"),
    "TreeAttention": (
        *("q", "k", "v", "positions", "ancestors", "past", "cache", "rope", "sinks"),
        "relative",
    ),
    "EncodeAttention": ("q", "k", "v", "rope", "relative"),
    "CrossAttention": ("q", "source", "memory"),
    "KvWrite": ("k", "v", "past", "cache", "rope"),
    "Embed": ("ids", "weights"),
    "HeadTopK": ("x", "rows", "full", "weights", "bias", "norm_weight", "norm_bias"),
}
OUTPUTS = {
    "QLinear": {"y": np.float32},
    "Norm": {"y": np.float32},
    "RopeTable": {"table": np.float32},
    "TreeAttention": {"y": np.float32, "cache_out": np.uint8},
    "EncodeAttention": {"y": np.float32},
    "CrossAttention": {"y": np.float32},
    "KvWrite": {"cache_out": np.uint8},
    "Embed": {"y": np.float32},
    "HeadTopK": {
        "values": np.float32,
        "ids": np.int64,
        "log_sum": np.float32,
        "logits": np.float32,
    },
}
OPTIONAL = {"bias", "residual", "norm_weight", "norm_bias", "weight", "rope", "sinks", "relative"}
Session = onnxruntime.InferenceSession
Shape = tuple[int | str, ...] | None


def session_options(threads: int = 1, ours: bool = True) -> onnxruntime.SessionOptions:
    """Options with our ops; nothing is logged. ours: the threads are ours, else the runtime's."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1 if ours else threads
    if ours:
        options.add_session_config_entry(THREADS_KEY, str(threads))
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library_path()))
    return options


@dataclass(frozen=True)
class OneNode:
    """A node with its attributes and inputs; an input that is not there is absent.

    constants: inputs that are part of the model. shapes: those that the model states for inputs.
    """

    op: str
    attributes: Mapping[str, Any]
    inputs: Mapping[str, np.ndarray]
    constants: Collection[str] = ()
    shapes: Mapping[str, Shape] = field(default_factory=dict)

    def but(self, **changes: Any) -> OneNode:
        """With other attributes or inputs; None takes one away."""
        inputs, attributes = dict(self.inputs), dict(self.attributes)
        for name, value in changes.items():
            target = inputs if name in INPUTS[self.op] else attributes
            target.pop(name, None)
            if value is not None:
                target[name] = value
        constants = set(self.constants) & set(inputs)
        return replace(self, attributes=attributes, inputs=inputs, constants=constants)

    def model(self) -> bytes:
        """The ONNX model."""
        names = [name if name in self.inputs else "" for name in INPUTS[self.op]]
        node = helper.make_node(
            self.op, names, list(OUTPUTS[self.op]), name="node", domain=DOMAIN, **self.attributes
        )
        graph = helper.make_graph(
            [node],
            "one_node",
            [self._value(name, array) for name, array in self.feeds().items()],
            [_described(name, dtype, None) for name, dtype in OUTPUTS[self.op].items()],
            [onnx.numpy_helper.from_array(self.inputs[name], name) for name in self.constants],
        )
        versions = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
        made = helper.make_model(graph, opset_imports=versions, ir_version=9)
        return bytes(made.SerializeToString())

    def _value(self, name: str, array: np.ndarray) -> onnx.ValueInfoProto:
        return _described(name, array.dtype, self.shapes.get(name))

    def feeds(self) -> dict[str, np.ndarray]:
        """The inputs that are not part of the model."""
        return {k: v for k, v in self.inputs.items() if k not in self.constants}

    def session(self, threads: int = 1, ours: bool = True) -> Session:
        """A session of the model, on threads of ours or of the runtime."""
        return Session(self.model(), session_options(threads, ours), ["CPUExecutionProvider"])

    def run(self, session: Session | None = None) -> list[np.ndarray]:
        """The outputs; ops that write a cache get a copy."""
        feeds = {name: array.copy() for name, array in self.feeds().items()}
        return list((session or self.session()).run(None, feeds))


def _described(name: str, dtype: Any, shape: Shape) -> onnx.ValueInfoProto:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, element, shape)


def normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    """Normally distributed values, float32."""
    return random.standard_normal(shape).astype(np.float32)


def _q_linear(random: np.random.Generator) -> OneNode:
    stored = matrix(random, "w4", 40, 64)
    inputs = {
        "x": normal(random, 3, 64),
        "weights": stored.data,
        "bias": normal(random, 40),
        "residual": normal(random, 3, 40),
        "norm_weight": normal(random, 64),
    }
    attributes = {"format": "w4", "k": 64, "n": 40, "norm": "rms", "norm_eps": 1e-5}
    constants = {"weights", "bias", "norm_weight"}
    return OneNode("QLinear", attributes | {"activation": "silu"}, inputs, constants)


def _norm(random: np.random.Generator) -> OneNode:
    attributes = {"kind": "layer", "eps": 1e-5, "heads": 3, "width": 8, "offset": 4}
    inputs = {
        "x": normal(random, 5, 32),
        "weight": normal(random, 24),
        "bias": normal(random, 24),
        "residual": normal(random, 5, 24),
    }
    return OneNode("Norm", attributes | {"per_head": 1}, inputs, {"weight", "bias"})


def _rope_table(random: np.random.Generator) -> OneNode:
    frequencies = (1.0 / 10000 ** (np.arange(8) / 8)).astype(np.float32)
    positions = random.integers(0, 4000, 6)
    inputs = {"positions": positions, "frequencies": frequencies}
    return OneNode("RopeTable", {"factor": 0.5}, inputs, {"frequencies"})


def _tree_attention(random: np.random.Generator) -> OneNode:
    heads, kv_heads, dim, past, rows, capacity = 4, 2, 16, 5, 6, 32
    depths, ancestors = tree(random, rows)
    joined = normal(random, rows, (heads + 2 * kv_heads) * dim)
    cache = np.zeros(capacity * 5 * kv_head_bytes(1, dim), np.uint8)
    cache.view(np.float16)[:] = random.standard_normal(cache.size // 2)
    attributes = {
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": dim,
        "scale": 0.25,
        "window": 9,
        "softcap": 30.0,
        "q_offset": 0,
        "k_offset": heads * dim,
        "v_offset": (heads + kv_heads) * dim,
        "kv_heads_before": 2,
        "kv_heads_total": 5,
        "reach": 3,
    }
    inputs = {
        **dict.fromkeys("qkv", joined),
        "positions": past + depths,
        "ancestors": ancestors,
        "past": np.array([past, 1, capacity]),
        "cache": cache,
        "rope": random.uniform(-1, 1, (rows, 2, 8)).astype(np.float32),
        "sinks": normal(random, heads),
        "relative": normal(random, heads, 7),
    }
    return OneNode("TreeAttention", attributes, inputs, {"sinks", "relative"})


def _encode_attention(random: np.random.Generator) -> OneNode:
    heads, kv_heads, dim, rows = 4, 2, 16, 21
    joined = normal(random, rows, (heads + 2 * kv_heads) * dim)
    attributes = {"heads": heads, "kv_heads": kv_heads, "head_dim": dim, "scale": 0.25, "reach": 4}
    attributes |= {"k_offset": heads * dim, "v_offset": (heads + kv_heads) * dim}
    inputs = {
        **dict.fromkeys("qkv", joined),
        "rope": random.uniform(-1, 1, (rows, 2, 8)).astype(np.float32),
        "relative": normal(random, heads, 9),
    }
    return OneNode("EncodeAttention", attributes, inputs, {"relative"})


def _cross_attention(random: np.random.Generator) -> OneNode:
    attention = _tree_attention(random)
    joined = attention.inputs["q"]
    inputs = {"q": joined, "source": np.array([25, 1, 32]), "memory": attention.inputs["cache"]}
    places = ("heads", "kv_heads", "head_dim", "scale", "kv_heads_before", "kv_heads_total")
    attributes = {name: attention.attributes[name] for name in places}
    return OneNode("CrossAttention", attributes | {"q_offset": 32}, inputs)


def _kv_write(random: np.random.Generator) -> OneNode:
    attention = _tree_attention(random)
    joined = attention.inputs["k"][:, 64:].copy()
    inputs = {name: attention.inputs[name] for name in ("past", "cache", "rope")}
    places = ("kv_heads", "head_dim", "kv_heads_before", "kv_heads_total")
    attributes = {name: attention.attributes[name] for name in places}
    return OneNode("KvWrite", attributes | {"v_offset": 32}, {"k": joined, "v": joined, **inputs})


def _embed(random: np.random.Generator) -> OneNode:
    stored = matrix(random, "w8", 50, 32)
    inputs = {"ids": np.array([49, 0, 7, 7]), "weights": stored.data}
    attributes = {"format": "w8", "k": 32, "n": 50, "scale": -2.0}
    return OneNode("Embed", attributes, inputs, {"weights"})


def _head_top_k(random: np.random.Generator) -> OneNode:
    stored = matrix(random, "w4m", 70, 96)
    inputs = {
        "x": normal(random, 5, 96),
        "rows": np.array([4, 0, 4]),
        "full": np.array([1]),
        "weights": stored.data,
        "bias": normal(random, 70),
        "norm_weight": normal(random, 96),
        "norm_bias": normal(random, 96),
    }
    attributes = {"format": "w4m", "k": 96, "n": 70, "norm": "layer", "norm_eps": 1e-5}
    constants = {"weights", "bias", "norm_weight", "norm_bias"}
    return OneNode("HeadTopK", attributes | {"top": 9, "softcap": 30.0}, inputs, constants)


_EXAMPLES: dict[str, Callable[[np.random.Generator], OneNode]] = {
    "QLinear": _q_linear,
    "Norm": _norm,
    "RopeTable": _rope_table,
    "TreeAttention": _tree_attention,
    "EncodeAttention": _encode_attention,
    "CrossAttention": _cross_attention,
    "KvWrite": _kv_write,
    "Embed": _embed,
    "HeadTopK": _head_top_k,
}


def example(op: str) -> OneNode:
    """A sound node of that op, with all its optional inputs."""
    return _EXAMPLES[op](np.random.default_rng(11))
