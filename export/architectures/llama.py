"""Llama 2 and 3, and what keeps their form: SmolLM2, TinyLlama. Most families start from here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
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
    read_head_dim,
    take_attention,
    take_head,
    take_linear,
    take_norm,
    take_query_norms,
)
from quickdraft.export.architectures.rope import context_length, read_rope
from quickdraft.export.checkpoints.base import WeightMap

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}

PRE_NORMS: Mapping[str, str] = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
"""Norms before attention and before the MLP."""


def read_llama(config: Config, family: str, activation: str = "hidden_act") -> DecoderSpec:
    """A decoder with Llama's config keys and the same layer throughout, without biases.

    activation: the key of the activation.
    """
    config.only("partial_rotary_factor", 1.0)
    heads, head_dim = config.integer("num_attention_heads"), read_head_dim(config)
    layer = LayerSpec(
        num_heads=heads,
        num_kv_heads=config.optional_integer("num_key_value_heads") or heads,
        mlp_width=config.integer("intermediate_size"),
        rope=read_rope(config, head_dim, config.number("rope_theta")),
    )
    return DecoderSpec(
        family=family,
        vocab_size=config.integer("vocab_size"),
        hidden_size=config.integer("hidden_size"),
        head_dim=head_dim,
        context_length=context_length(config),
        layers=(layer,) * config.layers("num_hidden_layers"),
        norm_eps=config.number("rms_norm_eps"),
        activation=config.choice(activation, ACTIVATIONS),
        tied_output=config.flag("tie_word_embeddings"),
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


def read(config: Config) -> DecoderSpec:
    """`model_type` llama."""
    return replace(
        read_llama(config, "llama"),
        attention_bias=(config.flag("attention_bias"),) * 4,
        mlp_bias=config.flag("mlp_bias"),
    )


FAMILY = Family(read, gather_llama, DEFAULTS)
