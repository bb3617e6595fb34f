"""GPT-2: learned positions, layer norms, a plain MLP; matrices stored inputs first."""

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
    Linear,
)
from quickdraft.export.architectures.parts import ACTIVATIONS, rows, take_head, take_norm
from quickdraft.export.checkpoints.base import WeightMap

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}


def read(config: Config) -> DecoderSpec:
    """`model_type` gpt2."""
    config.only("scale_attn_weights", True)
    config.only("scale_attn_by_inverse_layer_idx", False)
    config.only("add_cross_attention", False)
    hidden, heads = config.integer("n_embd"), config.integer("n_head")
    if hidden % heads:
        raise config.wrong("n_head", heads, f"a divisor of 'n_embd' {hidden}")
    width = config.optional_integer("n_inner") or 4 * hidden
    return DecoderSpec(
        family="gpt2",
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        head_dim=hidden // heads,
        context_length=config.integer("n_positions"),
        layers=(LayerSpec(heads, heads, width, rope=None),) * config.layers("n_layer"),
        norm="layer",
        norm_eps=config.number("layer_norm_epsilon"),
        norm_bias=True,
        attention_bias=(True, True, True, True),
        mlp_bias=True,
        activation=config.choice("activation_function", ACTIVATIONS),
        tied_output=config.flag("tie_word_embeddings"),
    )


def gather(spec: DecoderSpec, weights: WeightMap) -> DecoderWeights:
    """The first checkpoints were saved without the prefix `transformer.`."""
    prefix = "" if "wte.weight" in weights else "transformer."
    hidden = spec.hidden_size

    def layer(index: int) -> LayerWeights:
        base, width = f"{prefix}h.{index}", spec.layers[index].mlp_width
        fused = f"{base}.attn.c_attn"
        qkv = _take_transposed(weights, fused, 3 * hidden, hidden)
        query, key, value = (
            rows(qkv, slice(part * hidden, (part + 1) * hidden), f"{fused}.{name}")
            for part, name in enumerate(("query", "key", "value"))
        )
        return LayerWeights(
            query,
            key,
            value,
            output=_take_transposed(weights, f"{base}.attn.c_proj", hidden, hidden),
            gate=None,
            up=_take_transposed(weights, f"{base}.mlp.c_fc", width, hidden),
            down=_take_transposed(weights, f"{base}.mlp.c_proj", hidden, width),
            attention_norm=take_norm(weights, f"{base}.ln_1", hidden, bias=True),
            mlp_norm=take_norm(weights, f"{base}.ln_2", hidden, bias=True),
        )

    table = f"{prefix}wte.weight"
    return DecoderWeights(
        embedding=weights.expect(table, (spec.vocab_size, hidden)),
        positions=weights.expect(f"{prefix}wpe.weight", (spec.context_length, hidden)),
        layers=tuple(layer(index) for index in range(len(spec.layers))),
        final_norm=take_norm(weights, f"{prefix}ln_f", hidden, bias=True),
        head=take_head(spec, weights, table, "lm_head.weight"),
    )


def _take_transposed(weights: WeightMap, name: str, outputs: int, inputs: int) -> Linear:
    """`name`.weight, stored [inputs, outputs], as [outputs, inputs]."""
    stored = weights.expect(f"{name}.weight", (inputs, outputs))
    weight = stored.map(lambda values: values.T, (outputs, inputs), f"{name}.weight")
    return Linear(weight, weights.expect(f"{name}.bias", (outputs,)))


FAMILY = Family(read, gather, DEFAULTS)
