"""Marian: BART with sinusoids for positions and no norm of embeddings (arXiv 1804.00344)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from quickdraft.export.architectures.bart import DEFAULTS as BART
from quickdraft.export.architectures.bart import UNUSED, read_spec, take_layers
from quickdraft.export.architectures.config import Config
from quickdraft.export.architectures.seq2seq import (
    Seq2SeqFamily,
    Seq2SeqSpec,
    Seq2SeqWeights,
    StackSpec,
    StackWeights,
    take_head,
)
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.weights import Dense, Weight
from quickdraft.types import SourceSpec

DEFAULTS: Mapping[str, Any] = {
    **BART,
    "vocab_size": 58101,
    "share_encoder_decoder_embeddings": True,
    "decoder_start_token_id": 58100,
    "forced_eos_token_id": 0,
}
_BASE = 10_000.0
_SINUSOIDS = r"^model\.(encoder|decoder)\.embed_positions\.weight$"


def read(config: Config) -> Seq2SeqSpec:
    """`model_type` marian."""
    config.only("share_encoder_decoder_embeddings", True)
    config.only("decoder_vocab_size", config.integer("vocab_size"))
    length = config.integer("max_position_embeddings")
    return read_spec(config, "marian", SourceSpec(length), length, norm_after=True)


def gather(spec: Seq2SeqSpec, weights: WeightMap) -> Seq2SeqWeights:
    """Positions are computed; old checkpoints hold them too."""
    table = "model.shared.weight"
    embedding = weights.expect(table, (spec.vocab_size, spec.hidden_size))

    def stack(kind: str, shape: StackSpec, length: int) -> StackWeights:
        return StackWeights(
            layers=take_layers(spec, shape, weights, f"model.{kind}"),
            embedding=embedding,
            positions=_sinusoids(length, spec.hidden_size),
        )

    return Seq2SeqWeights(
        stack("encoder", spec.encoder, spec.source.length),
        stack("decoder", spec.decoder, spec.context_length),
        take_head(spec, weights, table, "lm_head.weight", "final_logits_bias"),
    )


def _sinusoids(length: int, width: int) -> Weight:
    """[length, width]: sines of all frequencies, then cosines."""

    def load() -> Dense:
        places = np.arange(width) // 2
        angles = np.arange(length)[:, None] / np.power(_BASE, 2 * places / width)
        waves = np.concatenate([np.sin(angles[:, ::2]), np.cos(angles[:, 1::2])], axis=1)
        return Dense(waves.astype(np.float32))

    return Weight(f"sinusoids.{length}", (length, width), "F32", load)


FAMILY = Seq2SeqFamily(read, gather, DEFAULTS, f"{UNUSED}|{_SINUSOIDS}")
