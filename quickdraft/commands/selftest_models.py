"""The tiny models of the selftest: random weights, and between them what backends get wrong."""

from __future__ import annotations

import zlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quickdraft.export.architectures.base import find_any
from quickdraft.export.architectures.seq2seq import Seq2SeqFamily, build_encoder, build_target
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.emitters.base import EmitRequest, Part
from quickdraft.export.quantize import FORMATS
from quickdraft.export.weights import dense_weight
from quickdraft.kvcache.memory import Source

if TYPE_CHECKING:
    from quickdraft.export.weights import Weight

VOCABULARY = 96
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 384,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {**_COMMON, "model_type": "llama"},
    "mistral": {**_COMMON, "model_type": "mistral", "sliding_window": 20},
    "gemma2": {
        **_COMMON,
        "model_type": "gemma2",
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 20,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 10.0,
        "tie_word_embeddings": True,
    },
    "bart": {
        "model_type": "bart",
        "is_encoder_decoder": True,
        "vocab_size": VOCABULARY,
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 96,
        "decoder_ffn_dim": 96,
        "max_position_embeddings": 384,
        "decoder_start_token_id": 2,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "forced_eos_token_id": None,
    },
}
"""Configs: plain; a window over what is seen; soft caps and every other layer with a window; an
encoder before it."""


class RandomWeights(WeightMap):
    """Tensors of whatever name and shape a model asks for, the same for the same name."""

    def __init__(self) -> None:
        super().__init__({})

    def expect(self, name: str, shape: tuple[int, ...]) -> Weight:
        """See WeightMap."""
        values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        if len(shape) == 1:
            values = (0 if name.endswith("bias") else 1) + 0.3 * values
        elif "embed" not in name:
            values *= 1.2 / shape[-1] ** 0.5
        return dense_weight(name, values.astype(np.float32))


def request_of(model: str, weights: str, folder: Path) -> EmitRequest:
    """What an emitter needs to write a model of MODELS, the target first."""
    config, values = MODELS[model], RandomWeights()
    family = find_any(config)
    spec = family.read(config)
    facts = spec.model_spec()
    if not isinstance(family, Seq2SeqFamily):
        build = partial(family.build, spec=spec, weights=values)
        return EmitRequest(folder, FORMATS[weights], (Part("target", "model", build, facts),))
    gathered = family.gather(spec, values)
    parts = (
        Part("target", "model", partial(build_target, spec=spec, weights=gathered), facts),
        Part(
            "encoder",
            "encoder",
            partial(build_encoder, spec=spec, weights=gathered),
            spec.encoder_spec(),
            features=spec.source.width,
            target=facts,
        ),
    )
    return EmitRequest(folder, FORMATS[weights], parts)


def source_of(model: str) -> Source | None:
    """What the encoder of a model reads; None where it has none."""
    if not MODELS[model].get("is_encoder_decoder", False):
        return None
    return Source(tokens=np.random.default_rng(5).integers(4, VOCABULARY, 23))
