"""When not to trust what a speech model wrote down: the checks of OpenAI's Whisper.

Radford et al. (2022), section 4.5, and `transcribe.py` of its code: a text that compresses too well
repeats itself, and is decoded again at a higher temperature, as is one that is improbable; a window
whose probability of silence is high and whose text is improbable says nothing. Ours: there is one
draw at a temperature, not the best of five.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.tree import Tree
from quickdraft.kvcache.memory import Memory
from quickdraft.runtime import processors
from quickdraft.runtime.backends.base import CancelToken, Seq2SeqBackend
from quickdraft.runtime.generation import GenerationConfig

MOST_COMPRESSION = 2.4
LEAST_LOGPROB = -1.0
MOST_SILENCE = 0.6
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_CHUNK = 64


def compression_ratio(text: str) -> float:
    """Bytes of a text over those of its zlib form; 0 of an empty one."""
    data = text.encode("utf-8", "surrogatepass")
    return len(data) / len(zlib.compress(data)) if data else 0.0


def probability(logits: NDArray[np.float32], token: int) -> float:
    """Of a token, from float32 logits [vocabulary] without any options."""
    wide = logits.astype(np.float64)
    weights = np.exp(wide - wide.max())
    return float(weights[token] / weights.sum())


def mean_logprob(
    backend: Seq2SeqBackend,
    memory: Memory,
    tokens: tuple[Sequence[int], Sequence[int]],
    rules: tuple[GenerationConfig, tuple[int, ...]],
    cancel: CancelToken | None = None,
) -> float:
    """Natural-log probability of an answer under its rules, over the tokens of it and one more.

    tokens: what it begins with, and those of the answer, end-of-text included. rules: its options,
    of GenerationConfig.after, and the end-of-text tokens.
    """
    opening, answer = tokens
    config, eos_ids = rules
    whole = np.asarray([*opening, *answer], np.int64)
    cache, total = backend.new_cache(memory), 0.0
    for start in range(0, len(whole) - 1, _CHUNK):
        chunk = whole[start : min(start + _CHUNK, len(whole) - 1)]
        output = backend.step(Tree.chain(chunk.tolist()), cache, None, cancel)
        cache.commit(range(len(chunk)))
        for row in range(max(0, len(opening) - 1 - start), len(chunk)):
            end = start + row + 1
            given = output.logits[row].astype(np.float32)
            logits = processors.apply_all(given, whole[:end], end - len(opening), config, eos_ids)
            total += _logprob(logits, int(whole[end]))
    said = sum(token not in eos_ids for token in answer)
    return total / (said + 1)


def _logprob(logits: NDArray[np.float32], token: int) -> float:
    wide = logits.astype(np.float64)
    shifted = wide - wide.max()
    return float(shifted[token] - np.log(np.exp(shifted).sum()))
