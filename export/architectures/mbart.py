"""mBART: BART with norms before each sublayer, and one after each stack (arXiv 2001.08210)."""

from __future__ import annotations

from quickdraft.export.architectures.bart import DEFAULTS, UNUSED, gather, read_spec
from quickdraft.export.architectures.config import Config
from quickdraft.export.architectures.seq2seq import Seq2SeqFamily, Seq2SeqSpec
from quickdraft.types import SourceSpec


def read(config: Config) -> Seq2SeqSpec:
    """`model_type` mbart."""
    length = config.integer("max_position_embeddings")
    return read_spec(config, "mbart", SourceSpec(length), length, norm_after=False)


FAMILY = Seq2SeqFamily(read, gather, {**DEFAULTS, "decoder_start_token_id": None}, UNUSED)
