"""Mistral: Llama with a sliding window in every layer, if any."""

from __future__ import annotations

from dataclasses import replace

from quickdraft.export.architectures.base import Family
from quickdraft.export.architectures.config import Config
from quickdraft.export.architectures.decoder import DecoderSpec
from quickdraft.export.architectures.llama import DEFAULTS as LLAMA
from quickdraft.export.architectures.llama import gather_llama, read_llama

DEFAULTS = {
    **LLAMA,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}


def read(config: Config) -> DecoderSpec:
    """`model_type` mistral."""
    if config.has("layer_types"):
        raise config.refuse("layer_types", config.values["layer_types"], "absence")
    spec = read_llama(config, "mistral")
    window = config.optional_integer("sliding_window")
    return replace(spec, layers=tuple(replace(layer, window=window) for layer in spec.layers))


FAMILY = Family(read, gather_llama, DEFAULTS)
