"""A tiny model of a language in which every word has two followers, and texts in it.

The stream after a word is its embedding and nothing else: what follows depends on that word alone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from tiny.checkpoint import tiny_checkpoint

from quickdraft.export.checkpoints.base import Checkpoint, WeightMap
from quickdraft.export.weights import dense_weight

WORDS = range(280, 304)
"""Tokens of the language; all others are never said."""
LIKELY = 0.6
"""How often the first follower comes when words are drawn."""
_SCALE = 3.0


def followers() -> NDArray[np.int64]:
    """int64 [words, 2]: indices of the likelier and of the other follower of each word: the next
    ones in two orders that have no pair in common."""
    count, rng = len(WORDS), np.random.default_rng(6)
    orders = [rng.permutation(count) for _ in range(2)]
    after = np.stack([np.roll(order, -1)[np.argsort(order)] for order in orders], 1)
    assert (after[:, 0] != after[:, 1]).all()
    return after


def followers_checkpoint() -> Checkpoint:
    """The model."""
    checkpoint = tiny_checkpoint("llama")
    arrays = {name: 0 * weight.dense() for name, weight in checkpoint.weights.items()}
    hidden = arrays["model.norm.weight"].shape[0]
    # At right angles to each other, and to a vector of ones: what heads add to all values alike,
    # as their activation hardly goes below zero, says nothing.
    random = np.random.default_rng(2).standard_normal((hidden, len(WORDS) + 1))
    random[:, 0] = 1
    words = np.linalg.qr(random)[0].T[1:].astype(np.float32)
    table, head = arrays["model.embed_tokens.weight"], arrays["lm_head.weight"]
    table[WORDS.start : WORDS.stop] = words
    first, second = followers().T
    head[WORDS.start + first] += _SCALE * words
    # Norms make an embedding sqrt(hidden) long, so that the two differ by this much:
    gap = np.log(LIKELY / (1 - LIKELY)) / np.sqrt(hidden)
    head[WORDS.start + second] += np.float32(_SCALE - gap) * words
    for name in arrays:
        if name.endswith("norm.weight"):
            arrays[name] += 1
    weights = {name: dense_weight(name, values) for name, values in arrays.items()}
    source = replace(checkpoint.source, name="tiny-followers", fingerprint="f" * 64)
    return replace(checkpoint, weights=WeightMap(weights), source=source)


def text(length: int, seed: int) -> NDArray[np.int32]:
    """Words as the model would draw them: int32 [length]."""
    rng, after = np.random.default_rng(seed), followers()
    said = [int(rng.integers(len(WORDS)))]
    while len(said) < length:
        said.append(int(after[said[-1], int(rng.random() >= LIKELY)]))
    return np.array(said, np.int32) + np.int32(WORDS.start)
