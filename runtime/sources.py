"""Questions: tokens that an answer goes on from, and the source that an encoder reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quickdraft.errors import InputError, OptionError
from quickdraft.kvcache.base import KvCache
from quickdraft.kvcache.memory import Source
from quickdraft.runtime.backends.base import Backend, Seq2SeqBackend
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.languages import Languages, Translation
from quickdraft.runtime.text import Tokenizer
from quickdraft.types import ModelSpec, SourceSpec

Prompt = str | Sequence[int] | Source | Translation
"""A text, token ids, what an encoder reads, or a text in one language to be put into another."""
TRIAL_LENGTH = 256
"""Tokens or frames of a source that steps are measured over."""


@dataclass(frozen=True)
class Question:
    """tokens: the answer goes on from them, and does not hold them. source: what an encoder-decoder
    model answers about, None for others."""

    tokens: list[int]
    source: Source | None = None


def question_of(
    prompt: Prompt,
    opening: Sequence[int] | None,
    spec: ModelSpec,
    tokenizer: Tokenizer,
    generation: Mapping[str, Any],
) -> Question:
    """The question of a prompt, which is the source of an encoder-decoder model.

    opening: what answers of such a model begin with; None leaves it to its generation config.

    Raises:
        InputError: it is not what the model reads. OptionError: there is no opening, or no such
            language.
    """
    if isinstance(prompt, Translation):
        return _translated(prompt, opening, spec, tokenizer, generation)
    if spec.source is not None:
        source = _source_of(prompt, spec, spec.source, tokenizer)
        begins = opening_of(generation) if opening is None else opening
        return Question(token_list(begins, spec.vocab_size), source)
    if opening is not None or isinstance(prompt, Source):
        raise InputError(f"{spec.family} has no encoder; give it a text or token ids")
    if isinstance(prompt, str):
        # A hostile length must not reach the tokenizer.
        tokenizer.check_length(prompt, spec.context_length)
        return Question(tokenizer.encode(prompt, special=True, bos=tokenizer.add_bos))
    return Question(token_list(prompt, spec.vocab_size))


def _translated(
    asked: Translation,
    opening: Sequence[int] | None,
    spec: ModelSpec,
    tokenizer: Tokenizer,
    generation: Mapping[str, Any],
) -> Question:
    reads = spec.source
    if reads is None or reads.width:
        raise InputError(
            f"{spec.family} has no encoder of texts; ask it for a translation in words"
        )
    if opening is not None and asked.target_language is not None:
        raise OptionError("an opening says the target language already; give one of the two")
    tokenizer.check_length(asked.text, reads.length)
    begins = token_list(opening_of(generation) if opening is None else opening, spec.vocab_size)
    source, begins = Languages.of(tokenizer).question(asked, tokenizer, begins)
    source.check(spec)
    return Question(begins, source)


def config_for(question: Question, config: GenerationConfig) -> GenerationConfig:
    """The options of the answer to a question, its lengths those of the answer alone.

    Raises:
        OptionError: they leave no room for an answer, or are about tokens of a source, and there
            are none.
    """
    size, source = config.encoder_no_repeat_ngram_size, question.source
    if size and (source is None or source.tokens is None):
        raise OptionError(
            f"encoder_no_repeat_ngram_size is {size}, and the model reads no text as a source; "
            "leave it out"
        )
    return config.after(len(question.tokens))


def _source_of(
    prompt: str | Sequence[int] | Source, spec: ModelSpec, reads: SourceSpec, tokenizer: Tokenizer
) -> Source:
    if isinstance(prompt, Source):
        source = prompt
    elif reads.width:
        raise InputError(
            f"{spec.family} reads sound, not text: use `quickdraft transcribe`, or give a Source "
            "of features"
        )
    elif isinstance(prompt, str):
        tokenizer.check_length(prompt, reads.length)
        source = Source(tokens=np.asarray(tokenizer.encode_source(prompt), np.int64))
    else:
        source = Source(tokens=np.asarray(token_list(prompt, spec.vocab_size), np.int64))
    source.check(spec)
    return source


def token_list(prompt: Sequence[int], vocab_size: int) -> list[int]:
    """Token ids as plain integers.

    Raises:
        InputError: one is not an integer, or outside the vocabulary.
    """
    ids = []
    for token in prompt:
        if isinstance(token, bool) or not hasattr(token, "__index__"):
            raise InputError(f"the prompt holds {token!r}; give a text or token ids")
        if not 0 <= int(token) < vocab_size:
            raise InputError(
                f"the prompt holds token {int(token)}, and the vocabulary has {vocab_size} tokens"
            )
        ids.append(int(token))
    return ids


def opening_of(generation: Mapping[str, Any]) -> list[int]:
    """What an answer begins with, as generation_config.json says it: decoder_start_token_id, then
    forced_decoder_ids up to the first gap, or forced_bos_token_id.

    Raises:
        OptionError: it does not say, or with something that is no token.
    """
    first = generation.get("decoder_start_token_id", generation.get("bos_token_id"))
    opening = [first]
    forced = generation.get("forced_decoder_ids") or []
    try:
        places = dict(forced)
    except (TypeError, ValueError):
        places = {0: None}
    while places.get(len(opening)) is not None:
        opening.append(places[len(opening)])
    if not forced and generation.get("forced_bos_token_id") is not None:
        opening.append(generation["forced_bos_token_id"])
    if any(isinstance(token, bool) or not isinstance(token, int) for token in opening):
        raise OptionError(
            f"answers of this model would begin with {opening}, as its generation config says; "
            "give the token ids to begin with as `opening`"
        )
    return opening


def trial_cache(backend: Backend) -> KvCache:
    """An empty cache to measure steps over, of an encoder-decoder model with some source."""
    source = backend.spec.source
    if source is None or not isinstance(backend, Seq2SeqBackend):
        return backend.new_cache()
    length = source.length if source.fixed else min(TRIAL_LENGTH, source.length)
    if source.width:
        trial = Source(features=np.zeros((length, source.width), np.float32))
    else:
        trial = Source(tokens=np.zeros(length, np.int64))
    return backend.new_cache(backend.encode(trial))
