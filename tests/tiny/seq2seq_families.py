"""Tiny random encoder-decoder models of every family, built with torch and saved as folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tiny.families import randomise, save_tokenizer
from tiny.mu import Mu, save_mu
from tiny.seq2seq_configs import SEQ2SEQ_CONFIGS
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    GenerationMixin,
    WhisperForConditionalGeneration,
)

from quickdraft.kvcache.memory import Source


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
        if isinstance(self.model, Mu):
            return self.model.encode(torch.from_numpy(source)).detach().numpy()
        encoder = self.model.get_encoder()
        with torch.no_grad():
            result: NDArray[np.float32] = encoder(**self._given(source))[0][0].numpy()
        return result

    def generate(self, source: Source, opening: Sequence[int], count: int) -> list[int]:
        """A greedy answer of at most `count` tokens after its opening, which it begins with."""
        given = source.tokens if source.features is None else source.features
        assert given is not None  # one of them is there
        if isinstance(self.model, Mu):
            return self.model.generate(torch.from_numpy(given), list(opening), count)
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
        if isinstance(self.model, Mu):
            memory = self.model.encode(torch.from_numpy(source))
            return self.model.decode(torch.from_numpy(tokens), memory).detach().numpy()
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
    if family == "mu":
        return Seq2SeqOracle(save_mu(config, folder))
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
