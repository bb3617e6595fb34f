"""A fork of a cache whose staged tree reaches beyond the context."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from quickdraft.kvcache.blocked import BlockedCache
from quickdraft.kvcache.by_head import ByHeadCache
from quickdraft.kvcache.contiguous import ContiguousCache
from quickdraft.types import ModelSpec

SPEC = ModelSpec(
    family="llama",
    num_layers=2,
    hidden_size=8,
    num_heads=(2, 2),
    num_kv_heads=(2, 2),
    head_dim=4,
    vocab_size=32,
    context_length=64,
    windows=(None, None),
)


@pytest.mark.parametrize("kind", [BlockedCache, ByHeadCache, ContiguousCache])
def test_only_what_is_committed_is_copied(kind: Any) -> None:
    cache = kind(SPEC)
    cache.stage(60)
    cache.commit(range(60))
    cache.stage(4)
    cache.extend(90)  # branches take more slots than there are positions
    twin = cache.fork()
    assert (twin.length, twin.staged) == (60, 0)
    for layer in range(2):
        for mine, theirs in zip(cache.layer(layer), twin.layer(layer), strict=True):
            np.testing.assert_array_equal(mine[:60], theirs[:60])
