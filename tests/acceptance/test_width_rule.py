"""The width rule on the real models: the same bits at every width, over trees, on every KV type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import pytest
from tiny.hotpath_models import bits, plain, same_rows

from quickdraft import load
from quickdraft.drafters.tree import Tree
from quickdraft.kvcache.blocked import KV_TYPES, BlockedCache
from quickdraft.kvcache.memory import Source
from quickdraft.models.aliases import ALIASES
from quickdraft.runtime.backends.hotpath import HotpathBackend
from quickdraft.runtime.drafting import AUTO, DraftingSetup
from quickdraft.runtime.model import Model

PROMPT = "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return a - b\n\ndef add("

pytestmark = [pytest.mark.models, pytest.mark.native, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", params=[(a, kv) for a in ALIASES for kv in KV_TYPES], ids="-".join)
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    alias, kv = request.param
    with load(alias, backend="hotpath", kv_cache=kv, store=False) as opened:
        yield opened


def question(model: Model) -> str | Source:
    """A text, or for a model of sound something like it."""
    source = model.spec.source
    if source is None or not source.width:
        return PROMPT
    rng = np.random.default_rng(0)
    return Source(features=rng.normal(size=(source.length, source.width)).astype(np.float32))


def caches(model: Model) -> Callable[[], BlockedCache]:
    """Makes empty caches, over one memory where the model has an encoder."""
    backend = model.backend
    assert isinstance(backend, HotpathBackend)
    if model.spec.source is None:
        return backend.new_cache
    asked = question(model)
    source = Source(tokens=np.array(model.tokenize(asked))) if isinstance(asked, str) else asked
    return partial(backend.new_cache, backend.encode(source))


def test_same_bits(model: Model) -> None:
    backend, new_cache = model.backend, caches(model)
    assert isinstance(backend, HotpathBackend)
    tokens = np.random.default_rng(0).integers(0, model.spec.vocab_size, 40).tolist()
    expected, decoded = plain(backend, tokens, new_cache)
    for sizes in ((40,), (1, 8, 16, 15), (3, 37)):
        cache, found, at = new_cache(), [], 0
        for size in sizes:
            found += bits(backend.step(Tree.chain(tokens[at : at + size]), cache))
            cache.commit(range(size))
            at += size
        assert found == expected
        assert same_rows(cache, decoded)

    cache, path = new_cache(), [0, 2, 4, 6]
    backend.step(Tree.chain(tokens[:20]), cache)
    cache.commit(range(20))
    nodes = np.array([tokens[20], 5, tokens[21], 9, tokens[22], 11, tokens[23]])
    said = bits(backend.step(Tree(nodes, np.array([-1, 0, 0, 1, 2, 2, 4])), cache))
    cache.commit(path)
    assert [said[node] for node in path] == expected[20:24]
    assert same_rows(cache, plain(backend, tokens[:24], new_cache)[1])


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 0.8, "top_k": 40}])
def test_drafting_changes_no_token(model: Model, options: dict[str, Any]) -> None:
    prompt = question(model)
    said = {"max_new_tokens": 40, "ignore_eos": True, "seed": 3, **options}
    plain_answer = model.generate(prompt, num_draft_tokens=0, **said)
    accepted = 0
    for name in ("auto", *AUTO):
        with closing(model.open_drafting(DraftingSetup(name, store=False))) as drafting:
            for nodes in (None, 8):
                session = model.session(drafting)
                drafted = model.generate(prompt, session=session, num_draft_tokens=nodes, **said)
                assert drafted.token_ids == plain_answer.token_ids
                accepted += drafted.timings.draft_n_accepted
    assert accepted > 0
