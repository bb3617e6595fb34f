"""Gemma 3, the text model: Gemma 2 with normed heads and two rotary embeddings.

Layers with a window rotate by `rope_local_base_freq`, unscaled; the others by `rope_theta` as
`rope_scaling` says. Of a checkpoint with a vision tower, the text model is taken.
"""

from __future__ import annotations

from dataclasses import replace

from quickdraft.errors import CheckpointError
from quickdraft.export.architectures.base import Family
from quickdraft.export.architectures.config import Config
from quickdraft.export.architectures.decoder import DecoderSpec, DecoderWeights
from quickdraft.export.architectures.gemma2 import DEFAULTS as GEMMA2
from quickdraft.export.architectures.gemma2 import SANDWICH_NORMS, read_gemma
from quickdraft.export.architectures.llama import gather_llama
from quickdraft.export.architectures.parts import read_windows
from quickdraft.export.architectures.rope import read_rope
from quickdraft.export.checkpoints.base import WeightMap

DEFAULTS = {
    **GEMMA2,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "sliding_window_pattern": 6,
}

# Where the text model lies: alone, and in either generation of the multimodal classes.
_PREFIXES = ("model", "language_model.model", "model.language_model")


def read(config: Config) -> DecoderSpec:
    """`model_type` gemma3_text."""
    config.only("attn_logit_softcapping")  # the published code reads it and does not apply it
    config.only("use_bidirectional_attention", False)
    spec = read_gemma(config, "gemma3")
    period = config.integer("sliding_window_pattern")
    windows = read_windows(config, lambda layer: (layer + 1) % period != 0)
    local = read_rope(config, spec.head_dim, config.number("rope_local_base_freq"), scaled=False)
    layers = tuple(
        layer if window is None else replace(layer, window=window, rope=local)
        for layer, window in zip(spec.layers, windows, strict=True)
    )
    return replace(spec, layers=layers, query_norm="head")


def read_multimodal(config: Config) -> DecoderSpec:
    """`model_type` gemma3: the text model under `text_config`."""
    text = config.section("text_config")
    if text is None:
        raise CheckpointError(f"{config.where} lacks 'text_config'")
    return FAMILY.read(text.values, text.where)


def gather(spec: DecoderSpec, weights: WeightMap) -> DecoderWeights:
    """The text model, wherever it lies."""
    here = (each for each in _PREFIXES if f"{each}.embed_tokens.weight" in weights)
    return gather_llama(spec, weights, SANDWICH_NORMS, next(here, "model"))


FAMILY = Family(read, gather, DEFAULTS)
MULTIMODAL = Family(read_multimodal, gather, {}, r"(^|\.)(vision_tower|multi_modal_projector)\.")
