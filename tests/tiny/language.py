"""A tiny model that speaks a language which can be learnt: most words have one usual successor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from tiny.checkpoint import tiny_checkpoint

from quickdraft.export.checkpoints.base import Checkpoint, WeightMap
from quickdraft.export.weights import dense_weight

SURE = 2.2
"""Size of the output matrix: how often the usual word comes when words are drawn."""
CONTEXT = 0.2
"""Size of what attention and MLP add: how often earlier words make another word likeliest."""


def language_checkpoint(**config: Any) -> Checkpoint:
    """`tiny_checkpoint` whose output matrix says which word follows which."""
    checkpoint = tiny_checkpoint("llama", **{"max_position_embeddings": 4096, **config})
    arrays = {name: weight.dense() for name, weight in checkpoint.weights.items()}
    words = arrays["model.embed_tokens.weight"]
    words = words / np.linalg.norm(words, axis=1, keepdims=True)
    arrays["model.embed_tokens.weight"] = 4 * words
    arrays["lm_head.weight"] = np.empty_like(words)
    arrays["lm_head.weight"][np.random.default_rng(5).permutation(len(words))] = SURE * words
    for name in arrays:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            arrays[name] = CONTEXT * arrays[name]
    weights = {name: dense_weight(name, v.astype(np.float32)) for name, v in arrays.items()}
    source = replace(checkpoint.source, name="tiny-language")
    return replace(checkpoint, weights=WeightMap(weights), source=source)
