"""Encoder-decoder models on the hot path: width rule, memories, and what is refused."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from tiny.hotpath_models import bits
from tiny.seq2seq_models import SPECS, emitted, source

from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, BundleError
from quickdraft.export.emitters.hotpath import emit_hotpath
from quickdraft.kvcache.memory import RowMemory
from quickdraft.runtime.backends.hotpath import HotpathBackend
from quickdraft.runtime.backends.hotpath_memory import BlockedMemory

pytestmark = pytest.mark.native

TOKENS = np.random.default_rng(4).integers(0, 96, 9).tolist()
LENGTH = 33


@functools.cache
def backend(name: str, kv_cache: str = "f16", threads: int = 2) -> HotpathBackend:
    asked, target, encoder = emitted(emit_hotpath, name, "int8")
    spec = asked.parts[0].spec
    return HotpathBackend(asked.folder, spec, target, threads, kv_cache, encoder=encoder)


@functools.cache
def memory(name: str, kv_cache: str = "f16", length: int = LENGTH) -> BlockedMemory:
    return backend(name, kv_cache).encode(source(name, length))


@pytest.mark.parametrize("kv_cache", ["f32", "f16", "int8"])
@pytest.mark.parametrize("name", SPECS)
def test_a_row_has_the_same_bits_however_it_is_run(name: str, kv_cache: str) -> None:
    model = backend(name, kv_cache)
    cache, alone = model.new_cache(memory(name, kv_cache)), []
    for token in TOKENS:
        alone += bits(model.step(Tree.chain([token]), cache))
        cache.commit([0])
    chain = model.step(Tree.chain(TOKENS), model.new_cache(memory(name, kv_cache)))
    assert bits(chain) == alone
    # The same tokens, each with a sibling that leads nowhere.
    nodes = [token for pair in zip(TOKENS, TOKENS[::-1], strict=True) for token in pair]
    parents = [-1, -1, *(parent for i in range(1, len(TOKENS)) for parent in (2 * i - 2,) * 2)]
    branching = Tree(np.array(nodes), np.array(parents))
    tree = model.step(branching, model.new_cache(memory(name, kv_cache)))
    assert bits(tree)[::2] == alone


@pytest.mark.parametrize("name", SPECS)
def test_a_memory_has_the_same_bits_with_any_number_of_threads(name: str) -> None:
    again = backend(name, threads=1).encode(source(name, LENGTH))
    assert np.array_equal(again.cache.buffer, memory(name).cache.buffer)
    assert again.rows == SPECS[name].source.rows(LENGTH)
    assert again.nbytes == again.cache.buffer.nbytes


def test_the_source_decides_what_is_said() -> None:
    model = backend("tokens")
    others = [model.encode(source("tokens", LENGTH, seed)) for seed in (0, 1)]
    first, second = (model.step(Tree.chain(TOKENS), model.new_cache(m)) for m in others)
    assert bits(model.step(Tree.chain(TOKENS), model.new_cache(memory("tokens")))) == bits(first)
    assert bits(first) != bits(second)


def test_a_long_source_has_rows_beyond_the_longest_answer() -> None:
    held = memory("tokens", length=300)
    assert held.rows == 300 > backend("tokens").spec.context_length
    keys, values = held.layer(1)
    assert keys.shape == values.shape == (300, 4, 16)
    assert np.abs(keys).sum(axis=(1, 2)).all()


def test_a_memory_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        memory("frames").cache.buffer[0] = 1


def test_caches_without_the_right_memory_are_refused() -> None:
    model, tree = backend("after"), Tree.chain([1])
    with pytest.raises(BackendError, match="this cache is over no source"):
        model.step(tree, model.new_cache())
    rows = RowMemory(((np.zeros((3, 4, 16), np.float32),) * 2,) * 2)
    with pytest.raises(BackendError, match="needs its own memories, not RowMemory"):
        model.step(tree, model.new_cache(rows))


def test_an_encoder_of_another_flavour_is_refused() -> None:
    asked, target, encoder = emitted(emit_hotpath, "after", "int8")
    with pytest.raises(BundleError, match="manifest and graph disagree about the input"):
        HotpathBackend(asked.folder, asked.parts[0].spec, encoder, encoder=target)
