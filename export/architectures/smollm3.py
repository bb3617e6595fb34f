"""SmolLM 3: Llama with every fourth layer ignorant of positions."""

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
    "vocab_size": 128256,
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rope_theta": 2000000.0,
    "use_sliding_window": False,
    "sliding_window": None,
    "no_rope_layer_interval": 4,
    "tie_word_embeddings": True,
}


def read(config: Config) -> DecoderSpec:
    """`model_type` smollm3."""
    spec = read_llama(config, "smollm3")
    rotated = _rotated(config, len(spec.layers))
    windows = read_windows(
        config, lambda layer: not rotated[layer], config.flag("use_sliding_window")
    )
    layers = tuple(
        replace(layer, window=window, rope=layer.rope if rotates else None)
        for layer, window, rotates in zip(spec.layers, windows, rotated, strict=True)
    )
    return replace(
        spec,
        layers=layers,
        attention_bias=(config.flag("attention_bias"),) * 4,
        mlp_bias=config.flag("mlp_bias"),
    )


def _rotated(config: Config, count: int) -> list[bool]:
    """Which layers know positions: `no_rope_layers` has a 1 for those that do."""
    if not config.has("no_rope_layers"):
        interval = config.integer("no_rope_layer_interval")
        return [(layer + 1) % interval != 0 for layer in range(count)]
    marks = config.items("no_rope_layers", count)
    if any(mark not in (0, 1) for mark in marks):
        raise config.wrong("no_rope_layers", marks, "a list of 0 and 1")
    return [bool(mark) for mark in marks]


FAMILY = Family(read, gather_llama, DEFAULTS)
