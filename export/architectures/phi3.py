"""Phi 3 and 4 (mini): Llama with fused projections, a partial rotary embedding, a window."""

from __future__ import annotations

from dataclasses import replace

from quickdraft.export.architectures.base import Family
from quickdraft.export.architectures.config import Config
from quickdraft.export.architectures.decoder import DecoderSpec, DecoderWeights, LayerWeights
from quickdraft.export.architectures.llama import DEFAULTS as LLAMA
from quickdraft.export.architectures.llama import read_llama
from quickdraft.export.architectures.parts import rows, take_head, take_linear, take_norm
from quickdraft.export.architectures.rope import context_length, read_rope
from quickdraft.export.checkpoints.base import WeightMap

DEFAULTS = {
    **LLAMA,
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "partial_rotary_factor": 1.0,
    "sliding_window": None,
}


def read(config: Config) -> DecoderSpec:
    """`model_type` phi3."""
    if config.has("layer_types"):
        raise config.refuse("layer_types", config.values["layer_types"], "absence")
    config = _modern(config)
    spec = read_llama(Config({**config.values, **_PLAIN}, config.where), "phi3")
    partial, theta = config.number("partial_rotary_factor"), config.number("rope_theta")
    rope = read_rope(config, spec.head_dim, theta, partial)
    window = config.optional_integer("sliding_window")
    layers = tuple(replace(layer, rope=rope, window=window) for layer in spec.layers)
    return replace(spec, layers=layers, context_length=context_length(config))


# What the rotary embedding of this family depends on is read here, not by `read_llama`.
_PLAIN = {"partial_rotary_factor": None, "rope_scaling": None}


def _modern(config: Config) -> Config:
    """Early checkpoints call LongRoPE `su` or `yarn`; nothing else is known here."""
    scaling = config.section("rope_scaling")
    if scaling is None:
        return config
    key = "rope_type" if scaling.has("rope_type") else "type"
    scaling.choice(key, dict.fromkeys(("longrope", "su", "yarn", "default")))
    if scaling.values[key] == "default":
        return config
    renamed = {**scaling.values, "rope_type": "longrope"}
    return Config({**config.values, "rope_scaling": renamed}, config.where)


def gather(spec: DecoderSpec, weights: WeightMap) -> DecoderWeights:
    """Fused projections, cut: queries, keys, values; gate, up."""
    hidden = spec.hidden_size

    def layer(index: int) -> LayerWeights:
        base, shape = f"model.layers.{index}", spec.layers[index]
        q, kv = shape.num_heads * spec.head_dim, shape.num_kv_heads * spec.head_dim
        width = shape.mlp_width
        fused, mlp = f"{base}.self_attn.qkv_proj", f"{base}.mlp.gate_up_proj"
        qkv = take_linear(weights, fused, q + 2 * kv, hidden, False)
        gate_up = take_linear(weights, mlp, 2 * width, hidden, False)
        return LayerWeights(
            query=rows(qkv, slice(0, q), f"{fused}.query"),
            key=rows(qkv, slice(q, q + kv), f"{fused}.key"),
            value=rows(qkv, slice(q + kv, q + 2 * kv), f"{fused}.value"),
            output=take_linear(weights, f"{base}.self_attn.o_proj", hidden, q, False),
            gate=rows(gate_up, slice(0, width), f"{mlp}.gate"),
            up=rows(gate_up, slice(width, 2 * width), f"{mlp}.up"),
            down=take_linear(weights, f"{base}.mlp.down_proj", hidden, width, False),
            attention_norm=take_norm(weights, f"{base}.input_layernorm", hidden),
            mlp_norm=take_norm(weights, f"{base}.post_attention_layernorm", hidden),
        )

    table = "model.embed_tokens.weight"
    return DecoderWeights(
        embedding=weights.expect(table, (spec.vocab_size, hidden)),
        layers=tuple(layer(index) for index in range(len(spec.layers))),
        final_norm=take_norm(weights, "model.norm", hidden),
        head=take_head(spec, weights, table, "lm_head.weight"),
    )


FAMILY = Family(read, gather, DEFAULTS)
