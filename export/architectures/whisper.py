"""Whisper: two convolutions over log-mel frames, norms before each sublayer (arXiv 2212.04356).

A source is always as many frames as the model has positions for: 30 seconds, filled with silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quickdraft.export.architectures.bart import layer_norm, read_spec, take_layers
from quickdraft.export.architectures.config import Config
from quickdraft.export.architectures.seq2seq import (
    Convolution,
    Seq2SeqFamily,
    Seq2SeqSpec,
    Seq2SeqWeights,
    StackWeights,
    take_head,
)
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.types import SourceSpec

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 51865,
    "num_mel_bins": 80,
    "d_model": 384,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "decoder_ffn_dim": 1536,
    "max_source_positions": 1500,
    "max_target_positions": 448,
    "activation_function": "gelu",
    "scale_embedding": False,
    "tie_word_embeddings": True,
    "decoder_start_token_id": 50257,
}
_STRIDE = 2
_WIDTH = 3
_UNUSED = r"^proj_out\.weight$"


def read(config: Config) -> Seq2SeqSpec:
    """`model_type` whisper."""
    config.only("scale_embedding", False)
    frames = _STRIDE * config.integer("max_source_positions")
    source = SourceSpec(frames, config.integer("num_mel_bins"), _STRIDE, fixed=True)
    length = config.integer("max_target_positions")
    return read_spec(config, "whisper", source, length, norm_after=False)


def gather(spec: Seq2SeqSpec, weights: WeightMap) -> Seq2SeqWeights:
    """Keys have no bias."""
    hidden, table = spec.hidden_size, "model.decoder.embed_tokens.weight"

    def convolution(name: str, columns: int, stride: int) -> Convolution:
        return Convolution(
            weights.expect(f"{name}.weight", (hidden, columns, _WIDTH)),
            weights.expect(f"{name}.bias", (hidden,)),
            stride,
        )

    encoder, decoder = "model.encoder", "model.decoder"
    rows = spec.source.rows(spec.source.length)
    return Seq2SeqWeights(
        StackWeights(
            layers=take_layers(spec, spec.encoder, weights, encoder, key_bias=False),
            convolutions=(
                convolution(f"{encoder}.conv1", spec.source.width, 1),
                convolution(f"{encoder}.conv2", hidden, spec.source.stride),
            ),
            positions=weights.expect(f"{encoder}.embed_positions.weight", (rows, hidden)),
            final_norm=layer_norm(spec, weights, f"{encoder}.layer_norm"),
        ),
        StackWeights(
            layers=take_layers(spec, spec.decoder, weights, decoder, key_bias=False),
            embedding=weights.expect(table, (spec.vocab_size, hidden)),
            positions=weights.expect(
                f"{decoder}.embed_positions.weight", (spec.context_length, hidden)
            ),
            final_norm=layer_norm(spec, weights, f"{decoder}.layer_norm"),
        ),
        take_head(spec, weights, table, "proj_out.weight"),
    )


FAMILY = Seq2SeqFamily(read, gather, DEFAULTS, _UNUSED)
