"""Gemma 2: norms on both sides of attention and MLP, soft caps, windows in every other layer."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from quickdraft.export.architectures.base import Family
from quickdraft.export.architectures.config import Config
from quickdraft.export.architectures.decoder import DecoderSpec
from quickdraft.export.architectures.llama import DEFAULTS as LLAMA
from quickdraft.export.architectures.llama import gather_llama, read_llama
from quickdraft.export.architectures.parts import read_windows

DEFAULTS = {
    **LLAMA,
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
}

SANDWICH_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


def read_gemma(config: Config, family: str) -> DecoderSpec:
    """What Gemma 2 and 3 share; windows and soft caps of attention are left to them."""
    spec = read_llama(config, family, activation="hidden_activation")
    return replace(
        spec,
        norm_offset=1.0,
        attention_bias=(config.flag("attention_bias"),) * 4,
        attention_scale=config.number("query_pre_attn_scalar") ** -0.5,
        embedding_scale=math.sqrt(spec.hidden_size),
        logit_softcap=config.optional_number("final_logit_softcapping"),
    )


def read(config: Config) -> DecoderSpec:
    """`model_type` gemma2."""
    config.only("rope_scaling")  # the published code has no scaled frequencies here
    spec = read_gemma(config, "gemma2")
    windows = read_windows(config, lambda layer: layer % 2 == 0)
    pairs = zip(spec.layers, windows, strict=True)
    return replace(
        spec,
        layers=tuple(replace(layer, window=window) for layer, window in pairs),
        attention_softcap=config.optional_number("attn_logit_softcapping"),
    )


FAMILY = Family(read, partial(gather_llama, norms=SANDWICH_NORMS), DEFAULTS)
