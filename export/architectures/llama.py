"""Llama 2 and 3, and what keeps their form: SmolLM2, TinyLlama."""

from __future__ import annotations

from quickdraft.export.architectures.base import Family
from quickdraft.export.architectures.config import Config
from quickdraft.export.architectures.decoder import DecoderSpec, LayerSpec
from quickdraft.export.architectures.names import ACTIVATIONS, gather_llama, read_head_dim
from quickdraft.export.architectures.rope import context_length, read_rope


def read(config: Config) -> DecoderSpec:
    """`model_type` llama."""
    hidden, heads = config.integer("hidden_size", 4096), config.integer("num_attention_heads", 32)
    head_dim = read_head_dim(config, hidden, heads)
    config.only("partial_rotary_factor", 1.0)
    layer = LayerSpec(
        num_heads=heads,
        num_kv_heads=config.integer("num_key_value_heads", heads),
        mlp_width=config.integer("intermediate_size", 11008),
        rope=read_rope(config, head_dim, config.number("rope_theta", 10000.0)),
    )
    return DecoderSpec(
        family="llama",
        vocab_size=config.integer("vocab_size", 32000),
        hidden_size=hidden,
        head_dim=head_dim,
        context_length=context_length(config, 2048),
        layers=(layer,) * config.integer("num_hidden_layers", 32),
        norm_eps=config.number("rms_norm_eps", 1e-6),
        attention_bias=(config.flag("attention_bias", False),) * 4,
        mlp_bias=config.flag("mlp_bias", False),
        activation=config.choice("hidden_act", ACTIVATIONS, "silu"),
        tied_output=config.flag("tie_word_embeddings", False),
    )


FAMILY = Family(read, gather_llama)
