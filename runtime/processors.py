"""Logits processors: pure functions, in the order and with the meaning of transformers.

Each takes float32 logits [vocabulary] that it may write, and returns them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.timestamps import follow_timestamps

Logits = NDArray[np.float32]
Tokens = NDArray[np.int64]


NO_SOURCE: Tokens = np.zeros(0, np.int64)


def is_active(config: GenerationConfig, generated: int, ahead: int = 0) -> bool:
    """Whether any processor changes logits at this point of an answer, or up to `ahead` tokens
    after it."""
    return (
        config.repetition_penalty != 1.0
        or config.presence_penalty != 0.0
        or config.frequency_penalty != 0.0
        or config.no_repeat_ngram_size > 0
        or generated < config.min_new_tokens
        or bool(config.logit_bias or config.suppress_tokens)
        or (generated == 0 and bool(config.begin_suppress_tokens))
        or config.timestamp_begin is not None
        or bool(config.bad_words_ids)
        or config.encoder_no_repeat_ngram_size > 0
        or (config.forced_eos_token_id is not None and generated + ahead >= _last(config))
    )


def _last(config: GenerationConfig) -> int:
    """Tokens of the answer before its last possible one."""
    return config.max_new_tokens - 1


def apply_all(
    logits: Logits,
    context: Tokens,
    generated: int,
    config: GenerationConfig,
    eos_ids: tuple[int, ...],
    source: Tokens = NO_SOURCE,
) -> Logits:
    """All processors that `config` turns on.

    context: the prompt and the answer so far, of which the last `generated` are the answer. source:
    what the encoder read, none of a model without one. config: of GenerationConfig.after.
    Bias comes first, as in transformers; the penalties on presence and frequency follow the one
    on repetition, as in vLLM.
    """
    if config.logit_bias:
        logits = bias(logits, config.logit_bias)
    if config.repetition_penalty != 1.0:
        logits = penalise_repetition(logits, context, config.repetition_penalty)
    if config.presence_penalty or config.frequency_penalty:
        answer = context[len(context) - generated :]
        logits = penalise_counts(logits, answer, config.presence_penalty, config.frequency_penalty)
    if config.no_repeat_ngram_size:
        logits = forbid_ngrams(logits, context, config.no_repeat_ngram_size)
    if config.encoder_no_repeat_ngram_size:
        logits = forbid_source(logits, context, source, config.encoder_no_repeat_ngram_size)
    if config.bad_words_ids:
        logits = forbid_words(logits, context, config.bad_words_ids, eos_ids)
    if generated < config.min_new_tokens and eos_ids:
        logits[list(eos_ids)] = -np.inf
    if config.forced_eos_token_id is not None and generated == _last(config):
        logits[:] = -np.inf
        logits[list(config.forced_eos_token_id)] = 0
    if config.suppress_tokens:
        logits[list(config.suppress_tokens)] = -np.inf
    if generated == 0 and config.begin_suppress_tokens:
        logits[list(config.begin_suppress_tokens)] = -np.inf
    if config.timestamp_begin is not None and eos_ids:
        answer = context[len(context) - generated :]
        logits = follow_timestamps(logits, answer, config.timestamp_begin, min(eos_ids))
    return logits


def bias(logits: Logits, biases: Mapping[int, float]) -> Logits:
    """Add a number to the logits of some tokens."""
    logits[list(biases)] += np.fromiter(biases.values(), np.float32, len(biases))
    return logits


def penalise_repetition(logits: Logits, context: Tokens, penalty: float) -> Logits:
    """Divide positive and multiply negative logits of tokens of the context (CTRL,
    arXiv 1909.05858)."""
    seen = np.zeros(len(logits), np.bool_)
    seen[context] = True
    ids = np.flatnonzero(seen)
    values = logits[ids]
    factor = np.float32(penalty)
    logits[ids] = np.where(values < 0, values * factor, values / factor)
    return logits


def penalise_counts(logits: Logits, answer: Tokens, presence: float, frequency: float) -> Logits:
    """Subtract `presence` from tokens of the answer, and `frequency` once per occurrence."""
    ids, counts = np.unique(answer, return_counts=True)
    logits[ids] -= (presence + frequency * counts).astype(np.float32)
    return logits


def forbid_ngrams(logits: Logits, context: Tokens, size: int) -> Logits:
    """Rule out every token that would complete an n-gram the context already has."""
    starts = len(context) - size + 1
    if starts < 1:
        return logits
    matches = np.ones(starts, np.bool_)
    for offset in range(size - 1):
        matches &= context[offset : offset + starts] == context[starts + offset]
    logits[context[size - 1 :][matches]] = -np.inf
    return logits


def forbid_source(logits: Logits, context: Tokens, source: Tokens, size: int) -> Logits:
    """Rule out every token that would complete an n-gram of the source."""
    starts, known = len(source) - size + 1, len(context) - (size - 1)
    if starts < 1 or known < 0:
        return logits
    matches = np.ones(starts, np.bool_)
    for offset in range(size - 1):
        matches &= source[offset : offset + starts] == context[known + offset]
    logits[source[size - 1 :][matches]] = -np.inf
    return logits


def forbid_words(
    logits: Logits, context: Tokens, words: Sequence[Sequence[int]], eos_ids: Sequence[int]
) -> Logits:
    """Rule out the last token of each sequence whose other tokens end the context. As in
    transformers, an end-of-text token by itself is left out, and so is a sequence longer than the
    context."""
    for word in words:
        *before, last = word
        if before and (
            len(word) > len(context) or context[len(context) - len(before) :].tolist() != before
        ):
            continue
        if before or last not in eos_ids:
            logits[last] = -np.inf
    return logits
