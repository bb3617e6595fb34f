"""StableLM: layer norms, a partial rotary embedding, possibly a parallel block and normed heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from quickdraft.export.architectures.base import Family
from quickdraft.export.architectures.config import Config
from quickdraft.export.architectures.decoder import (
    DecoderSpec,
    DecoderWeights,
    LayerSpec,
    LayerWeights,
    Norm,
)
from quickdraft.export.architectures.llama import PRE_NORMS, gather_llama
from quickdraft.export.architectures.parts import ACTIVATIONS, read_head_dim
from quickdraft.export.architectures.rope import context_length, read_rope
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.weights import Dense, Weight

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 50304,
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "layer_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.25,
    "use_qkv_bias": False,
    "qk_layernorm": False,
    "use_parallel_residual": False,
    "tie_word_embeddings": False,
}


def read(config: Config) -> DecoderSpec:
    """`model_type` stablelm."""
    config.only("head_dim")  # the published code derives it in one place and reads it in another
    head_dim, bias = read_head_dim(config), config.flag("use_qkv_bias")
    partial = config.number("partial_rotary_factor")
    layer = LayerSpec(
        num_heads=config.integer("num_attention_heads"),
        num_kv_heads=config.integer("num_key_value_heads"),
        mlp_width=config.integer("intermediate_size"),
        rope=read_rope(config, head_dim, config.number("rope_theta"), partial),
    )
    return DecoderSpec(
        family="stablelm",
        vocab_size=config.integer("vocab_size"),
        hidden_size=config.integer("hidden_size"),
        head_dim=head_dim,
        context_length=context_length(config),
        layers=(layer,) * config.layers("num_hidden_layers"),
        norm="layer",
        norm_eps=config.number("layer_norm_eps"),
        norm_bias=True,
        attention_bias=(bias, bias, bias, False),
        query_norm="head" if config.flag("qk_layernorm") else None,
        activation=config.choice("hidden_act", ACTIVATIONS),
        parallel=config.flag("use_parallel_residual"),
        tied_output=config.flag("tie_word_embeddings"),
    )


def gather(spec: DecoderSpec, weights: WeightMap) -> DecoderWeights:
    """Llama's names; the parallel block has one norm; each head has a norm of its own."""
    norms = {"attention_norm": PRE_NORMS["attention_norm"]} if spec.parallel else PRE_NORMS
    plain = gather_llama(replace(spec, query_norm=None), weights, norms)
    if spec.query_norm is None:
        return plain
    layers = (_with_head_norms(spec, weights, *pair) for pair in enumerate(plain.layers))
    return replace(plain, layers=tuple(layers))


def _with_head_norms(
    spec: DecoderSpec, weights: WeightMap, index: int, layer: LayerWeights
) -> LayerWeights:
    base, shape = f"model.layers.{index}.self_attn", spec.layers[index]
    return replace(
        layer,
        query_norm=_head_norms(spec, weights, f"{base}.q_layernorm", shape.num_heads),
        key_norm=_head_norms(spec, weights, f"{base}.k_layernorm", shape.num_kv_heads),
    )


def _head_norms(spec: DecoderSpec, weights: WeightMap, name: str, heads: int) -> Norm:
    """One vector [heads * head_dim] from a tensor per head."""
    parts = [
        weights.expect(f"{name}.norms.{head}.weight", (spec.head_dim,)) for head in range(heads)
    ]

    def load() -> Dense:
        return Dense(np.concatenate([part.dense() for part in parts]))

    return Norm(Weight(f"{name}.weight", (heads * spec.head_dim,), parts[0].stored_as, load))


FAMILY = Family(read, gather, DEFAULTS)
