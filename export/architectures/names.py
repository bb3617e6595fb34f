"""Tensor names in the style of Llama, which most families follow."""

from __future__ import annotations

from collections.abc import Mapping

from quickdraft.export.architectures.config import Config
from quickdraft.export.architectures.decoder import (
    DecoderSpec,
    DecoderWeights,
    LayerWeights,
    Linear,
    Norm,
)
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.ops import Activation

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

PRE_NORMS: Mapping[str, str] = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
"""Norms before attention and before the MLP."""


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


def gather_llama(
    spec: DecoderSpec,
    weights: WeightMap,
    norms: Mapping[str, str] = PRE_NORMS,
    prefix: str = "model",
) -> DecoderWeights:
    """A gated decoder with Llama's names. norms: name of the norm by its place in LayerWeights."""
    hidden, bias, norm_bias = spec.hidden_size, spec.mlp_bias, spec.norm_bias

    def layer(index: int) -> LayerWeights:
        base = f"{prefix}.layers.{index}"
        width = spec.layers[index].mlp_width
        query_norm, key_norm = take_query_norms(spec, weights, f"{base}.self_attn", index)
        norm = {
            place: take_norm(weights, f"{base}.{name}", hidden, norm_bias)
            for place, name in norms.items()
        }
        return LayerWeights(
            *take_attention(spec, weights, f"{base}.self_attn", index),
            gate=take_linear(weights, f"{base}.mlp.gate_proj", width, hidden, bias),
            up=take_linear(weights, f"{base}.mlp.up_proj", width, hidden, bias),
            down=take_linear(weights, f"{base}.mlp.down_proj", hidden, width, bias),
            query_norm=query_norm,
            key_norm=key_norm,
            attention_norm=norm.get("attention_norm"),
            attention_post_norm=norm.get("attention_post_norm"),
            mlp_norm=norm.get("mlp_norm"),
            mlp_post_norm=norm.get("mlp_post_norm"),
        )

    table = f"{prefix}.embed_tokens.weight"
    return DecoderWeights(
        embedding=weights.expect(table, (spec.vocab_size, hidden)),
        layers=tuple(layer(index) for index in range(len(spec.layers))),
        final_norm=take_norm(weights, f"{prefix}.norm", hidden, norm_bias),
        head=take_head(spec, weights, table, "lm_head.weight"),
    )


def read_head_dim(config: Config, hidden_size: int, num_heads: int) -> int:
    """`head_dim`, or the hidden size over the heads."""
    if not config.has("head_dim") and hidden_size % num_heads:
        raise config.refuse("num_attention_heads", num_heads, f"a divisor of {hidden_size}")
    return config.integer("head_dim", hidden_size // num_heads)
