"""OLMo 2: norms after attention and MLP only, and over the full width of queries and keys."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from quickdraft.export.architectures.base import Family
from quickdraft.export.architectures.config import Config
from quickdraft.export.architectures.decoder import DecoderSpec
from quickdraft.export.architectures.llama import DEFAULTS as LLAMA
from quickdraft.export.architectures.llama import gather_llama, read_llama

DEFAULTS = {**LLAMA, "vocab_size": 50304, "rms_norm_eps": 1e-5}

POST_NORMS = {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


def read(config: Config) -> DecoderSpec:
    """`model_type` olmo2."""
    return replace(
        read_llama(config, "olmo2"),
        attention_bias=(config.flag("attention_bias"),) * 4,
        query_norm="full",
    )


FAMILY = Family(read, partial(gather_llama, norms=POST_NORMS), DEFAULTS)
