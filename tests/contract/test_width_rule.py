"""The width rule: a row's bits do not depend on the rows computed with it.

Every chain, chunking and thread count gives the logits and the cache of plain decoding, bit for
bit, on every weight format. So does a tree along its first branch; a node that skips slots sums in
another grouping and is equal up to rounding (docs/decisions/001-slot-major-attention.md).
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.checkpoint import VOCAB_SIZE, tiny_checkpoint
from tiny.folders import lasting_folder
from tiny.parts import target_request

from quickdraft.drafters.tree import Tree
from quickdraft.export.architectures.base import find_family
from quickdraft.export.emitters.onnx import emit_onnx
from quickdraft.export.quantize import FORMATS
from quickdraft.kvcache.contiguous import ContiguousCache
from quickdraft.runtime.backends.onnxruntime import OnnxRuntimeBackend

FORMS = ("fp32", "fp16", "int8", "int4")
FAMILIES = {
    "grouped": ("llama", {}),
    "one head each": ("llama", {"num_attention_heads": 4, "num_key_value_heads": 4}),
    "windows": ("gemma2", {"sliding_window": 5}),
}


@functools.cache
def backend(kind: str, form: str, threads: int = 2) -> OnnxRuntimeBackend:
    family, config = FAMILIES[kind]
    checkpoint = tiny_checkpoint(family, **config)
    architecture = find_family(checkpoint.config)
    description = architecture.read(checkpoint.config)
    spec = description.model_spec()
    folder = lasting_folder()
    variant = emit_onnx(
        target_request(
            build=lambda ops: architecture.build(ops, description, checkpoint.weights),
            spec=spec,
            folder=folder,
            fmt=FORMATS[form],
            hidden_states=(1,),
        )
    )[0]
    return OnnxRuntimeBackend(folder, spec, variant, threads=threads)


def plain(model: OnnxRuntimeBackend, tokens: list[int]) -> tuple[np.ndarray, ContiguousCache]:
    """Logits of each token decoded alone, and the cache."""
    cache = model.new_cache()
    rows = []
    for token in tokens:
        rows.append(model.step(Tree.chain([token]), cache).logits[0].copy())
        cache.commit([0])
    return np.stack(rows), cache


def committed(cache: ContiguousCache) -> list[np.ndarray]:
    return [a[: cache.length] for i in range(2) for a in cache.layer(i)]


def assert_same_bits(a: np.ndarray, b: np.ndarray) -> None:
    assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", FAMILIES)
def test_chunks(kind: str, form: str) -> None:
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, 150).tolist()
    model = backend(kind, form)
    logits, cache = plain(model, tokens)
    for size in (3, 17, 64, 150):
        chunked = model.new_cache()
        rows = []
        for start in range(0, len(tokens), size):
            chunk = tokens[start : start + size]
            rows.append(model.step(Tree.chain(chunk), chunked).logits.copy())
            chunked.commit(range(len(chunk)))
        assert_same_bits(np.concatenate(rows), logits)
        for ours, theirs in zip(committed(chunked), committed(cache), strict=True):
            assert_same_bits(ours, theirs)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    size = draw(st.integers(1, 16))
    parent = [-1] + [draw(st.integers(0, i - 1)) for i in range(1, size)]
    tokens = draw(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=size, max_size=size))
    return Tree(np.array(tokens, np.int64), np.array(parent, np.int64))


def path_to(tree: Tree, node: int) -> list[int]:
    path = [node]
    while tree.parent[path[0]] >= 0:
        path.insert(0, int(tree.parent[path[0]]))
    return path


@pytest.mark.parametrize(("kind", "form"), [(k, f) for k in FAMILIES for f in ("fp32", "int4")])
@settings(max_examples=15, deadline=None)
@given(tree=trees(), past=st.integers(0, 70), node=st.integers(0, 15), seed=st.integers(0, 99))
def test_trees(kind: str, form: str, tree: Tree, past: int, node: int, seed: int) -> None:
    model = backend(kind, form)
    prefix = np.random.default_rng(seed).integers(0, VOCAB_SIZE, past).tolist()
    cache = model.new_cache()
    if prefix:
        model.step(Tree.chain(prefix), cache)
        cache.commit(range(past))
    output = model.step(tree, cache)
    path = path_to(tree, node % len(tree))
    logits, expected = plain(model, prefix + tree.tokens[path].tolist())
    cache.commit(path)
    pairs = [(output.logits[path], logits[past:])]
    pairs += zip(committed(cache), committed(expected), strict=True)
    for ours, theirs in pairs:
        if path == list(range(len(path))):
            assert_same_bits(ours, theirs)
        elif form == "fp32":
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_threads() -> None:
    tokens = np.random.default_rng(3).integers(0, VOCAB_SIZE, 40).tolist()
    one = plain(backend("grouped", "int4", 1), tokens)[0]
    two = plain(backend("grouped", "int4", 2), tokens)[0]
    assert_same_bits(one, two)


def test_wanted_rows_and_hidden_states() -> None:
    model = backend("grouped", "fp32")
    tokens = np.arange(9, dtype=np.int64)
    every = model.step(Tree.chain(tokens), model.new_cache())
    some = model.step(Tree.chain(tokens), model.new_cache(), np.array([8, 2], np.int64))
    assert_same_bits(some.logits, every.logits[[8, 2]])
    assert some.hidden_states[1].shape == (9, model.spec.hidden_size)


def test_growing_the_cache_changes_nothing() -> None:
    model = backend("grouped", "fp32")
    tokens = np.random.default_rng(5).integers(0, VOCAB_SIZE, 100).tolist()
    logits, _ = plain(model, tokens)
    small = ContiguousCache(model.spec, capacity=1)
    rows = [model.step(Tree.chain(tokens[:60]), small).logits.copy()]
    small.commit(range(60))
    rows.append(model.step(Tree.chain(tokens[60:]), small).logits)
    assert_same_bits(np.concatenate(rows), logits)
