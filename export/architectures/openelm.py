"""OpenELM: heads and MLP width that grow with depth, normed heads, fused projections.

Source: Mehta et al. 2024, arXiv 2404.14619; config keys as in the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quickdraft.export.architectures.base import Family
from quickdraft.export.architectures.config import Config
from quickdraft.export.architectures.decoder import (
    DecoderSpec,
    DecoderWeights,
    LayerSpec,
    LayerWeights,
)
from quickdraft.export.architectures.parts import (
    ACTIVATIONS,
    rows,
    take_head,
    take_linear,
    take_norm,
    take_query_norms,
)
from quickdraft.export.architectures.rope import read_rope
from quickdraft.export.checkpoints.base import WeightMap

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 32000,
    "max_context_length": 2048,
    "ffn_dim_divisor": 256,
    "activation_fn_name": "swish",
    "rope_freq_constant": 10000,
    "normalize_qk_projections": False,
    "share_input_output_layers": False,
}

_NORM_EPS = 1e-6


def read(config: Config) -> DecoderSpec:
    """`model_type` openelm."""
    config.only("ffn_with_glu", True)
    config.only("normalization_layer_name", "rms_norm")
    config.only("rope_scaling")
    count, head_dim = config.layers("num_transformer_layers"), config.integer("head_dim")
    hidden, divisor = config.integer("model_dim"), config.integer("ffn_dim_divisor")
    rope = read_rope(config, head_dim, config.number("rope_freq_constant"))
    layers = tuple(
        LayerSpec(heads, kv_heads, _divisible(multiplier * hidden, divisor), rope)
        for heads, kv_heads, multiplier in zip(
            config.integers("num_query_heads", count),
            config.integers("num_kv_heads", count),
            config.numbers("ffn_multipliers", count),
            strict=True,
        )
    )
    return DecoderSpec(
        family="openelm",
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        head_dim=head_dim,
        context_length=config.integer("max_context_length"),
        layers=layers,
        norm_eps=_NORM_EPS,
        query_norm="head" if config.flag("normalize_qk_projections") else None,
        activation=config.choice("activation_fn_name", ACTIVATIONS),
        tied_output=config.flag("share_input_output_layers"),
    )


def _divisible(value: float, divisor: int) -> int:
    """The multiple of `divisor` nearest to value, but not below nine tenths of it."""
    nearest = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * value else nearest


def gather(spec: DecoderSpec, weights: WeightMap) -> DecoderWeights:
    """Fused projections, cut: queries, keys, values; gate, up."""
    hidden = spec.hidden_size

    def layer(index: int) -> LayerWeights:
        base, shape = f"transformer.layers.{index}", spec.layers[index]
        q, kv = shape.num_heads * spec.head_dim, shape.num_kv_heads * spec.head_dim
        width, fused, mlp = shape.mlp_width, f"{base}.attn.qkv_proj", f"{base}.ffn.proj_1"
        qkv = take_linear(weights, fused, q + 2 * kv, hidden, False)
        gate_up = take_linear(weights, mlp, 2 * width, hidden, False)
        query_norm, key_norm = take_query_norms(spec, weights, f"{base}.attn", index)
        return LayerWeights(
            query=rows(qkv, slice(0, q), f"{fused}.query"),
            key=rows(qkv, slice(q, q + kv), f"{fused}.key"),
            value=rows(qkv, slice(q + kv, q + 2 * kv), f"{fused}.value"),
            output=take_linear(weights, f"{base}.attn.out_proj", hidden, q, False),
            gate=rows(gate_up, slice(0, width), f"{mlp}.gate"),
            up=rows(gate_up, slice(width, 2 * width), f"{mlp}.up"),
            down=take_linear(weights, f"{base}.ffn.proj_2", hidden, width, False),
            attention_norm=take_norm(weights, f"{base}.attn_norm", hidden),
            mlp_norm=take_norm(weights, f"{base}.ffn_norm", hidden),
            query_norm=query_norm,
            key_norm=key_norm,
        )

    table = "transformer.token_embeddings.weight"
    return DecoderWeights(
        embedding=weights.expect(table, (spec.vocab_size, hidden)),
        layers=tuple(layer(index) for index in range(len(spec.layers))),
        final_norm=take_norm(weights, "transformer.norm", hidden),
        head=take_head(spec, weights, table, "lm_head.weight"),
    )


FAMILY = Family(read, gather, DEFAULTS)
