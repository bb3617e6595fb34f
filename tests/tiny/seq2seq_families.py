"""Tiny random encoder-decoder models of every family, built with torch and saved as folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tiny.families import randomise, save_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    GenerationMixin,
    WhisperForConditionalGeneration,
)

from quickdraft.kvcache.memory import Source

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


@dataclass(frozen=True)
class Seq2SeqOracle:
    """A model of the published code, without a cache."""

    model: Any

    @property
    def reads_features(self) -> bool:
        """Whether its source is frames."""
        return isinstance(self.model, WhisperForConditionalGeneration)

    def _given(self, source: NDArray[Any]) -> dict[str, torch.Tensor]:
        if self.reads_features:
            return {"input_features": torch.from_numpy(source.T.copy())[None]}
        return {"input_ids": torch.from_numpy(source)[None]}

    def states(self, source: NDArray[Any]) -> NDArray[np.float32]:
        """What the encoder ends in: source, tokens [n] or frames [n, width], to [rows, hidden]."""
        encoder = self.model.get_encoder()
        with torch.no_grad():
            result: NDArray[np.float32] = encoder(**self._given(source))[0][0].numpy()
        return result

    def generate(self, source: Source, opening: Sequence[int], count: int) -> list[int]:
        """A greedy answer of at most `count` tokens after its opening, which it begins with."""
        given = source.tokens if source.features is None else source.features
        assert given is not None  # one of them is there
        # Whisper has a generate of its own, which reads whole files.
        generate = GenerationMixin.generate if self.reads_features else type(self.model).generate
        with torch.no_grad():
            found = generate(
                self.model,
                **self._given(given),
                decoder_input_ids=torch.tensor([list(opening)]),
                max_new_tokens=count,
                num_beams=1,
                do_sample=False,
                forced_eos_token_id=None,
                use_cache=False,  # it is wrong where encoder and decoder differ in depth
            )
        result: list[int] = found[0].tolist()
        return result

    def logits(self, source: NDArray[Any], tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Tokens [n] of the decoder to logits [n, vocabulary]."""
        ids = torch.from_numpy(tokens)[None]
        with torch.no_grad():
            given = self._given(source)
            found = self.model(**given, decoder_input_ids=ids, use_cache=False)
        result: NDArray[np.float32] = found.logits[0].float().numpy()
        return result


def save_seq2seq(name: str, folder: Path) -> Seq2SeqOracle:
    """Build SEQ2SEQ_CONFIGS[name], save it as a checkpoint folder, and return it as an oracle."""
    family, config = SEQ2SEQ_CONFIGS[name]
    torch.manual_seed(len(name))
    settings = AutoConfig.for_model(family, **config)
    settings._attn_implementation = "eager"
    if family == "whisper":
        model: Any = WhisperForConditionalGeneration(settings)
    else:
        model = AutoModelForSeq2SeqLM.from_config(settings)
    randomise(model)
    model.eval()
    model.save_pretrained(folder, safe_serialization=True)
    save_tokenizer(folder)
    return Seq2SeqOracle(model)
