"""What every backend of encoder-decoder models owes: the reference's values, the width rule."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from tiny.seq2seq_models import SPECS, emitted, source

from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, InputError
from quickdraft.export.emitters.hotpath import emit_hotpath
from quickdraft.export.emitters.numpy import emit_reference
from quickdraft.export.emitters.onnx import emit_onnx
from quickdraft.export.emitters.openvino import emit_openvino
from quickdraft.kvcache.memory import Memory
from quickdraft.runtime.backends.hotpath import HotpathBackend
from quickdraft.runtime.backends.onnxruntime import OnnxRuntimeBackend
from quickdraft.runtime.backends.openvino import OpenVinoBackend
from quickdraft.runtime.backends.reference import ReferenceBackend

FAST = [
    pytest.param("hotpath", marks=pytest.mark.native),
    "onnxruntime",
    pytest.param("openvino", marks=pytest.mark.openvino),
]
ALL = ["reference", *FAST]
EMITTERS = {
    "reference": emit_reference,
    "onnxruntime": emit_onnx,
    "hotpath": emit_hotpath,
    "openvino": emit_openvino,
}
TOKENS = np.random.default_rng(4).integers(0, 96, 9).tolist()
LENGTHS = {"tokens": 37, "after": 21, "frames": 81}
"""Rows of memories that are no multiples of anything: 37, 21 and 41."""


@functools.cache
def backend(engine: str, name: str, form: str = "fp32") -> Any:
    asked, target, encoder = emitted(EMITTERS[engine], name, form)
    spec = asked.parts[0].spec
    if engine == "reference":
        return ReferenceBackend(asked.folder, spec, target, encoder=encoder)
    if engine == "onnxruntime":
        return OnnxRuntimeBackend(asked.folder, spec, target, 2, encoder=encoder)
    if engine == "openvino":
        return OpenVinoBackend(asked.folder, spec, target, 2, encoder=encoder)
    return HotpathBackend(asked.folder, spec, target, 2, "f32", encoder=encoder)


@functools.cache
def memory(engine: str, name: str, form: str = "fp32", length: int | None = None) -> Memory:
    given = source(name, LENGTHS[name] if length is None else length)
    encoded: Memory = backend(engine, name, form).encode(given)
    return encoded


def cache(engine: str, name: str, form: str = "fp32") -> Any:
    return backend(engine, name, form).new_cache(memory(engine, name, form))


def branching() -> Tree:
    """TOKENS as every second node, each with a sibling that leads nowhere."""
    nodes = [token for pair in zip(TOKENS, TOKENS[::-1], strict=True) for token in pair]
    parents = [-1, -1, *(parent for i in range(1, len(TOKENS)) for parent in (2 * i - 2,) * 2)]
    return Tree(np.array(nodes), np.array(parents))


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("engine", FAST)
def test_like_the_reference(engine: str, name: str) -> None:
    ours, theirs = memory(engine, name), memory("reference", name)
    assert ours.rows == theirs.rows == SPECS[name].source.rows(LENGTHS[name])
    for layer in range(2):
        for a, b in zip(ours.layer(layer), theirs.layer(layer), strict=True):
            np.testing.assert_allclose(a, b, atol=3e-5)
    for tree in (Tree.chain(TOKENS), branching()):
        found, expected = (
            backend(each, name).step(tree, cache(each, name)).logits
            for each in (engine, "reference")
        )
        np.testing.assert_allclose(found, expected, atol=5e-5)


@pytest.mark.parametrize("length", [1, 18, 20])
def test_sources_of_other_lengths(length: int) -> None:
    """A single row; and as far as relative positions tell apart, and one less."""
    for name in ("tokens", "frames"):
        ours, theirs = (memory(e, name, length=length) for e in ("onnxruntime", "reference"))
        for a, b in zip(ours.layer(1), theirs.layer(1), strict=True):
            np.testing.assert_allclose(a, b, atol=3e-5)


@pytest.mark.parametrize("form", ["fp32", "int8"])
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("engine", FAST)
def test_a_row_has_the_same_bits_however_it_is_run(engine: str, name: str, form: str) -> None:
    model = backend(engine, name, form)
    if model.guarantee != "bit_identical":
        pytest.skip("does not promise it here")
    growing, alone = cache(engine, name, form), []
    for token in TOKENS:
        alone.append(model.step(Tree.chain([token]), growing).logits[0].tobytes())
        growing.commit([0])
    chain = model.step(Tree.chain(TOKENS), cache(engine, name, form)).logits
    assert [row.tobytes() for row in chain] == alone
    halves = cache(engine, name, form)
    for part in (TOKENS[:4], TOKENS[4:]):
        rows = model.step(Tree.chain(part), halves).logits
        halves.commit(range(len(part)))
    assert [row.tobytes() for row in rows] == alone[4:]


@pytest.mark.parametrize("engine", ALL)
def test_caches_without_their_memory_are_refused(engine: str) -> None:
    model = backend(engine, "after")
    with pytest.raises(BackendError, match="this cache is over no source"):
        model.step(Tree.chain([1]), model.new_cache())


@pytest.mark.parametrize("engine", ALL)
def test_wrong_sources_are_refused(engine: str) -> None:
    with pytest.raises(InputError, match="reads frames of 20 values, and the source is tokens"):
        backend(engine, "frames").encode(source("tokens", 5))
    with pytest.raises(InputError, match="41 tokens; the model reads 1 to 40"):
        backend(engine, "after").encode(source("after", 41))


@pytest.mark.parametrize("engine", ALL)
def test_forks_share_a_memory_that_nobody_changes(engine: str) -> None:
    model, first = backend(engine, "frames"), cache(engine, "frames")
    before = [part.copy() for part in first.memory.layer(0)]
    model.step(Tree.chain(TOKENS), first)
    first.commit([0, 1])
    twin = first.fork()
    assert twin.memory is first.memory
    a, b = (model.step(Tree.chain([5]), each).logits.copy() for each in (twin, first))
    assert np.array_equal(a, b)
    assert all(map(np.array_equal, first.memory.layer(0), before))
