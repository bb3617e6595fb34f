"""Small configs of every encoder-decoder family, and models of random weights after them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tiny.random_weights import RandomWeights

from quickdraft.export.architectures.base import find_any
from quickdraft.export.architectures.seq2seq import Seq2SeqFamily, build_encoder, build_target
from quickdraft.export.emitters.base import EmitRequest, Part
from quickdraft.export.quantize import FORMATS

_T5 = {
    "vocab_size": 320,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
}
_BART = {
    "vocab_size": 320,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 96,
    "decoder_start_token_id": 2,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "forced_eos_token_id": None,
}
_WHISPER = {
    **{key: value for key, value in _BART.items() if key != "max_position_embeddings"},
    "num_mel_bins": 16,
    "max_source_positions": 30,
    "max_target_positions": 96,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
_MU = {
    "vocab_size": 320,
    "n_embd": 32,
    "qkv_embd": 32,
    "hidden_dim": 48,
    "n_encoder_layer": 2,
    "n_decoder_layer": 1,
    "n_head": 4,
    "n_kv_head": 2,
    "block_size": 96,
    "decoder_start_token_id": 0,
}
SEQ2SEQ_CONFIGS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "t5-plain": ("t5", {**_T5, "feed_forward_proj": "relu"}),
    "t5-v1.1": ("t5", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "t5-deep": (
        "t5",
        {**_T5, "num_decoder_layers": 3, "d_kv": 16, "feed_forward_proj": "gated-silu"},
    ),
    "mt5": ("mt5", {**_T5, "feed_forward_proj": "gated-gelu"}),
    "bart": ("bart", {**_BART, "activation_function": "gelu"}),
    "bart-deep": ("bart", {**_BART, "encoder_layers": 3, "decoder_layers": 1}),
    "bart-scaled": (
        "bart",
        {**_BART, "scale_embedding": True, "activation_function": "relu", "decoder_ffn_dim": 80},
    ),
    "mbart": ("mbart", {**_BART, "scale_embedding": True}),
    "mbart-deep": ("mbart", {**_BART, "decoder_layers": 3, "activation_function": "relu"}),
    "mbart-forced": ("mbart", {**_BART, "forced_bos_token_id": 5}),
    "marian": ("marian", {**_BART, "scale_embedding": True, "activation_function": "swish"}),
    "marian-deep": ("marian", {**_BART, "encoder_layers": 3}),
    "marian-wide": ("marian", {**_BART, "d_model": 48, "encoder_ffn_dim": 96}),
    "mu-plain": ("mu", _MU),
    "mu-deep": ("mu", {**_MU, "n_encoder_layer": 4, "n_decoder_layer": 2, "n_kv_head": 4}),
    "mu-narrow": ("mu", {**_MU, "qkv_embd": 48, "n_head": 6, "n_kv_head": 1, "rope_theta": 500}),
    "mu-strided": ("mu", {**_MU, "qkv_embd": 96, "n_head": 6, "n_kv_head": 3}),
    "whisper": ("whisper", _WHISPER),
    "whisper-deep": ("whisper", {**_WHISPER, "decoder_layers": 1, "num_mel_bins": 20}),
    "whisper-suppressed": (
        "whisper",
        {
            **_WHISPER,
            "suppress_tokens": [5, 9, 100, 101],
            "begin_suppress_tokens": [7, 200],
            "forced_decoder_ids": [[1, 6], [2, 8]],
        },
    ),
}


def family_request(name: str, form: str, folder: Path) -> EmitRequest:
    """Both parts of SEQ2SEQ_CONFIGS[name] with random weights, in a format of FORMATS."""
    kind, config = SEQ2SEQ_CONFIGS[name]
    whole = {**config, "model_type": kind, "is_encoder_decoder": True}
    found = find_any(whole)
    assert isinstance(found, Seq2SeqFamily)
    spec = found.read(whole)
    weights = found.gather(spec, RandomWeights())
    facts = spec.model_spec()
    encoder = partial(build_encoder, spec=spec, weights=weights)
    width = spec.source.width
    parts = (
        Part("target", "model", partial(build_target, spec=spec, weights=weights), facts),
        Part("encoder", "encoder", encoder, spec.encoder_spec(), features=width, target=facts),
    )
    return EmitRequest(folder, FORMATS[form], parts)
