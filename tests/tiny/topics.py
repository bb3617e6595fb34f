"""A tiny model of a language in which a text keeps to one of two topics, and texts in it.

One coordinate of its last stream is the topic of the token it has read, and another that of the
tokens so far, on average: whether they agree, a judge can learn.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from tiny.checkpoint import tiny_checkpoint

from quickdraft.export.checkpoints.base import Checkpoint, WeightMap
from quickdraft.export.weights import dense_weight

TOPICS = (range(280, 292), range(292, 304))
"""Tokens of each; all others are never said."""
_OWN, _OTHERS = 0, 1


def topics_checkpoint() -> Checkpoint:
    """The model; it says every word of a topic alike."""
    checkpoint = tiny_checkpoint("llama")
    arrays = {name: 0 * weight.dense() for name, weight in checkpoint.weights.items()}
    table, head = arrays["model.embed_tokens.weight"], arrays["lm_head.weight"]
    for topic, sign in zip(TOPICS, (1, -1), strict=True):
        for word, token in enumerate(topic):
            table[token, _OWN] = sign
            table[token, 2 + word] = 1
            head[token, _OTHERS] = sign
    arrays["model.layers.0.self_attn.v_proj.weight"][0, _OWN] = 1
    arrays["model.layers.0.self_attn.o_proj.weight"][_OTHERS, 0] = 1
    for name in arrays:
        if name.endswith("norm.weight"):
            arrays[name] += 1
    weights = {name: dense_weight(name, values) for name, values in arrays.items()}
    source = replace(checkpoint.source, name="tiny-topics", fingerprint="e" * 64)
    return replace(checkpoint, weights=WeightMap(weights), source=source)


def talk(length: int, seed: int) -> NDArray[np.int32]:
    """Words of one topic: int32 [length]."""
    topic = TOPICS[seed % 2]
    rng = np.random.default_rng(seed)
    return rng.integers(topic.start, topic.stop, length).astype(np.int32)
