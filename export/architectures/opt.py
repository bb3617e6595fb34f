"""OPT: learned positions that start at row 2, layer norms, a plain MLP."""

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
    Norm,
)
from quickdraft.export.architectures.parts import (
    ACTIVATIONS,
    read_head_dim,
    take_attention,
    take_head,
    take_linear,
    take_norm,
)
from quickdraft.export.checkpoints.base import WeightMap

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 50272,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "ffn_dim": 3072,
    "max_position_embeddings": 2048,
    "activation_function": "relu",
    "enable_bias": True,
    "tie_word_embeddings": True,
}

_POSITION_OFFSET = 2
_NORM_EPS = 1e-5


def read(config: Config) -> DecoderSpec:
    """`model_type` opt."""
    config.only("do_layer_norm_before", True)
    config.only("_remove_final_layer_norm", False)
    config.only("layer_norm_elementwise_affine", True)
    config.only("head_dim")
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    config.only("word_embed_proj_dim", hidden)
    layer = LayerSpec(heads, heads, config.integer("ffn_dim"), rope=None)
    bias = config.flag("enable_bias")
    return DecoderSpec(
        family="opt",
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        head_dim=read_head_dim(config),
        context_length=config.integer("max_position_embeddings"),
        layers=(layer,) * config.layers("num_hidden_layers"),
        norm="layer",
        norm_eps=_NORM_EPS,
        norm_bias=True,
        attention_bias=(bias,) * 4,
        mlp_bias=bias,
        activation=config.choice("activation_function", ACTIVATIONS),
        tied_output=config.flag("tie_word_embeddings"),
    )


def gather(spec: DecoderSpec, weights: WeightMap) -> DecoderWeights:
    """The first checkpoints were saved without the prefix `model.`."""
    prefix = "decoder" if "decoder.embed_tokens.weight" in weights else "model.decoder"
    hidden = spec.hidden_size

    def norm(name: str) -> Norm:
        return take_norm(weights, f"{prefix}.{name}", hidden, bias=True)

    def layer(index: int) -> LayerWeights:
        base, width = f"{prefix}.layers.{index}", spec.layers[index].mlp_width
        return LayerWeights(
            *take_attention(spec, weights, f"{base}.self_attn", index, output="out_proj"),
            gate=None,
            up=take_linear(weights, f"{base}.fc1", width, hidden, spec.mlp_bias),
            down=take_linear(weights, f"{base}.fc2", hidden, width, spec.mlp_bias),
            attention_norm=norm(f"layers.{index}.self_attn_layer_norm"),
            mlp_norm=norm(f"layers.{index}.final_layer_norm"),
        )

    table, places = f"{prefix}.embed_tokens.weight", f"{prefix}.embed_positions.weight"
    stored = weights.expect(places, (spec.context_length + _POSITION_OFFSET, hidden))
    return DecoderWeights(
        embedding=weights.expect(table, (spec.vocab_size, hidden)),
        positions=stored.take_rows(slice(_POSITION_OFFSET, None), places),
        layers=tuple(layer(index) for index in range(len(spec.layers))),
        final_norm=norm("final_layer_norm"),
        head=take_head(spec, weights, table, "lm_head.weight"),
    )


FAMILY = Family(read, gather, DEFAULTS)
