"""Qwen 2 and 2.5: Llama with biases on query, key and value; windows above some layer."""

from __future__ import annotations

from dataclasses import replace

from quickdraft.export.architectures.base import Family
from quickdraft.export.architectures.config import Config
from quickdraft.export.architectures.decoder import DecoderSpec
from quickdraft.export.architectures.llama import DEFAULTS as LLAMA
from quickdraft.export.architectures.llama import gather_llama, read_llama
from quickdraft.export.architectures.parts import read_windows

DEFAULTS = {
    **LLAMA,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def read_qwen(config: Config, family: str) -> DecoderSpec:
    """What Qwen 2 and 3 share."""
    spec = read_llama(config, family)
    first = config.values["max_window_layers"]
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise config.wrong("max_window_layers", first, "an integer, zero or more")
    windows = read_windows(config, lambda layer: layer >= first, config.flag("use_sliding_window"))
    pairs = zip(spec.layers, windows, strict=True)
    return replace(spec, layers=tuple(replace(layer, window=window) for layer, window in pairs))


def read(config: Config) -> DecoderSpec:
    """`model_type` qwen2."""
    return replace(read_qwen(config, "qwen2"), attention_bias=(True, True, True, False))


FAMILY = Family(read, gather_llama, DEFAULTS)
