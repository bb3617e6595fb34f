"""GPT-NeoX and Pythia: a parallel block, a partial rotary embedding, query, key and value of a
head side by side in one matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

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
    rows,
    take_head,
    take_linear,
    take_norm,
)
from quickdraft.export.architectures.rope import context_length, read_rope
from quickdraft.export.checkpoints.base import WeightMap

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 50432,
    "hidden_size": 6144,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "intermediate_size": 24576,
    "hidden_act": "gelu",
    "rotary_pct": 0.25,
    "rotary_emb_base": 10000,
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "use_parallel_residual": True,
    "attention_bias": True,
    "tie_word_embeddings": False,
}


def read(config: Config) -> DecoderSpec:
    """`model_type` gpt_neox."""
    theta, partial = config.number("rotary_emb_base"), config.number("rotary_pct")
    # Newer files repeat them under the names that other families use.
    config.only("rope_theta", theta)
    config.only("partial_rotary_factor", partial)
    config.only("head_dim")
    heads, head_dim = config.integer("num_attention_heads"), read_head_dim(config)
    layer = LayerSpec(
        num_heads=heads,
        num_kv_heads=heads,
        mlp_width=config.integer("intermediate_size"),
        rope=read_rope(config, head_dim, theta, partial),
    )
    return DecoderSpec(
        family="gpt_neox",
        vocab_size=config.integer("vocab_size"),
        hidden_size=config.integer("hidden_size"),
        head_dim=head_dim,
        context_length=context_length(config),
        layers=(layer,) * config.layers("num_hidden_layers"),
        norm="layer",
        norm_eps=config.number("layer_norm_eps"),
        norm_bias=True,
        attention_bias=(config.flag("attention_bias"),) * 4,
        mlp_bias=True,
        activation=config.choice("hidden_act", ACTIVATIONS),
        parallel=config.flag("use_parallel_residual"),
        tied_output=config.flag("tie_word_embeddings"),
    )


def gather(spec: DecoderSpec, weights: WeightMap) -> DecoderWeights:
    """Rows of the fused matrix, by head: query, key, value."""
    hidden, bias = spec.hidden_size, spec.attention_bias[0]

    def layer(index: int) -> LayerWeights:
        base, shape = f"gpt_neox.layers.{index}", spec.layers[index]
        fused = f"{base}.attention.query_key_value"
        qkv = take_linear(weights, fused, 3 * hidden, hidden, bias)
        order = np.arange(3 * hidden).reshape(shape.num_heads, 3, spec.head_dim)
        query, key, value = (
            rows(qkv, order[:, part].ravel(), f"{fused}.{name}")
            for part, name in enumerate(("query", "key", "value"))
        )
        width, mlp = shape.mlp_width, f"{base}.mlp"
        return LayerWeights(
            query,
            key,
            value,
            output=take_linear(weights, f"{base}.attention.dense", hidden, hidden, bias),
            gate=None,
            up=take_linear(weights, f"{mlp}.dense_h_to_4h", width, hidden, True),
            down=take_linear(weights, f"{mlp}.dense_4h_to_h", hidden, width, True),
            attention_norm=take_norm(weights, f"{base}.input_layernorm", hidden, True),
            mlp_norm=take_norm(weights, f"{base}.post_attention_layernorm", hidden, True),
        )

    table = "gpt_neox.embed_in.weight"
    return DecoderWeights(
        embedding=weights.expect(table, (spec.vocab_size, hidden)),
        layers=tuple(layer(index) for index in range(len(spec.layers))),
        final_norm=take_norm(weights, "gpt_neox.final_layer_norm", hidden, True),
        head=take_head(spec, weights, table, "embed_out.weight"),
    )


FAMILY = Family(read, gather, DEFAULTS)
