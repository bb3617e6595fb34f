"""What family files share: activations, windows, and taking tensors with their shapes checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from quickdraft.export.architectures.config import Config
from quickdraft.export.architectures.decoder import DecoderSpec, Linear, Norm
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.ops import Activation

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Activations under their names in transformers."""


def read_head_dim(config: Config) -> int:
    """`head_dim`, or the hidden size over the heads."""
    if config.has("head_dim"):
        return config.integer("head_dim")
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if hidden % heads:
        raise config.wrong("num_attention_heads", heads, f"a divisor of 'hidden_size' {hidden}")
    return hidden // heads


def read_windows(
    config: Config, slides: Callable[[int], bool], sliding: bool = True
) -> tuple[int | None, ...]:
    """The window of each layer, from `layer_types` or, where that is absent, from `slides`.

    slides: whether a layer has a window. sliding: whether the config turns windows on.
    """
    count = config.layers("num_hidden_layers")
    window = config.optional_integer("sliding_window") if sliding else None
    if not config.has("layer_types"):
        return tuple(window if slides(layer) else None for layer in range(count))
    windows: list[int | None] = []
    for kind in config.items("layer_types", count):
        if kind not in ("full_attention", "sliding_attention"):
            raise config.refuse("layer_types", kind, "'full_attention', 'sliding_attention'")
        if kind == "sliding_attention" and window is None:
            raise config.wrong(
                "layer_types", kind, "'full_attention' everywhere, as no sliding window is set"
            )
        windows.append(window if kind == "sliding_attention" else None)
    return tuple(windows)


def take_linear(weights: WeightMap, name: str, rows: int, columns: int, bias: bool) -> Linear:
    """`name`.weight [rows, columns] and, if asked for, `name`.bias [rows]."""
    return Linear(
        weights.expect(f"{name}.weight", (rows, columns)),
        weights.expect(f"{name}.bias", (rows,)) if bias else None,
    )


def take_norm(weights: WeightMap, name: str, width: int, bias: bool = False) -> Norm:
    """`name`.weight [width] and, if asked for, `name`.bias [width]."""
    return Norm(
        weights.expect(f"{name}.weight", (width,)),
        weights.expect(f"{name}.bias", (width,)) if bias else None,
    )


def rows(linear: Linear, index: NDArray[np.int64] | slice, name: str) -> Linear:
    """Some outputs of a fused projection, under a name of their own; blocks stay blocks."""
    bias = linear.bias
    return Linear(
        linear.weight.take_rows(index, f"{name}.weight"),
        None if bias is None else bias.take_rows(index, f"{name}.bias"),
    )


def take_head(spec: DecoderSpec, weights: WeightMap, embedding: str, name: str) -> Linear:
    """The output projection: the embedding where they are tied."""
    shape = (spec.vocab_size, spec.hidden_size)
    return Linear(weights.expect(embedding if spec.tied_output else name, shape))


def take_attention(
    spec: DecoderSpec, weights: WeightMap, prefix: str, index: int, output: str = "o_proj"
) -> tuple[Linear, Linear, Linear, Linear]:
    """q_proj, k_proj, v_proj and the output projection under `prefix`."""
    layer, hidden = spec.layers[index], spec.hidden_size
    q, kv = layer.num_heads * spec.head_dim, layer.num_kv_heads * spec.head_dim
    biases = spec.attention_bias
    return (
        take_linear(weights, f"{prefix}.q_proj", q, hidden, biases[0]),
        take_linear(weights, f"{prefix}.k_proj", kv, hidden, biases[1]),
        take_linear(weights, f"{prefix}.v_proj", kv, hidden, biases[2]),
        take_linear(weights, f"{prefix}.{output}", hidden, q, biases[3]),
    )


def take_query_norms(
    spec: DecoderSpec, weights: WeightMap, prefix: str, index: int
) -> tuple[Norm | None, Norm | None]:
    """q_norm and k_norm under `prefix`, as `spec.query_norm` says."""
    if spec.query_norm is None:
        return None, None
    layer, each = spec.layers[index], spec.head_dim
    full = spec.query_norm == "full"
    return (
        take_norm(weights, f"{prefix}.q_norm", each * layer.num_heads if full else each),
        take_norm(weights, f"{prefix}.k_norm", each * layer.num_kv_heads if full else each),
    )
