"""The reference backend: the laws of trees and caches, cancellation, what it refuses to load."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.checkpoint import VOCAB_SIZE, tiny_checkpoint
from tiny.parts import target_request

from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, BundleError, Cancelled, ContextOverflow, OptionError
from quickdraft.export.architectures.base import find_family
from quickdraft.export.emitters.numpy import emit_reference
from quickdraft.export.quantize import FORMATS, quantize
from quickdraft.kvcache.contiguous import ContiguousCache
from quickdraft.manifest import Variant
from quickdraft.runtime.backends.base import CancelToken
from quickdraft.runtime.backends.reference import ReferenceBackend
from quickdraft.types import ModelSpec


def write(
    folder: Path, family: str, form: str = "fp32", **config: int
) -> tuple[ModelSpec, Variant]:
    checkpoint = tiny_checkpoint(family, **config)
    architecture = find_family(checkpoint.config)
    spec = architecture.read(checkpoint.config)
    request = target_request(
        lambda ops: architecture.build(ops, spec, checkpoint.weights),
        spec.model_spec(),
        folder,
        FORMATS[form],
        (1,),
    )
    return spec.model_spec(), emit_reference(request)[0]


@functools.cache
def backend(family: str, form: str = "fp32", **config: int) -> ReferenceBackend:
    with tempfile.TemporaryDirectory() as folder:
        spec, variant = write(Path(folder), family, form, **config)
        return ReferenceBackend(Path(folder), spec, variant)


def read(model: ReferenceBackend, tokens: list[int]) -> ContiguousCache:
    """A cache that has seen `tokens`, in two chunks."""
    cache = model.new_cache()
    for chunk in (tokens[:3], tokens[3:]):
        if chunk:
            model.step(Tree.chain(chunk), cache, rows=np.array([0]))
            cache.commit(range(len(chunk)))
    return cache


tokens = st.integers(0, VOCAB_SIZE - 1)


@st.composite
def drafts(draw: st.DrawFn) -> tuple[Tree, list[int]]:
    """A tree and one of its paths from the root."""
    size = draw(st.integers(1, 8))
    parent = [-1, *(draw(st.integers(0, i - 1)) for i in range(1, size))]
    ids = draw(st.lists(tokens, min_size=size, max_size=size))
    tree = Tree(np.array(ids, np.int64), np.array(parent, np.int64))
    end = draw(st.integers(0, size - 1))
    return tree, [int(node) for node in np.flatnonzero(tree.mask[end])]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@settings(max_examples=25, deadline=None)
@given(prompt=st.lists(tokens, min_size=1, max_size=12), draft=drafts(), rest=tokens)
def test_commit_of_a_path_is_having_decoded_it(
    family: str, prompt: list[int], draft: tuple[Tree, list[int]], rest: int
) -> None:
    model, (tree, path) = backend(family), draft
    cache, plain = read(model, prompt), read(model, prompt)
    at_once = model.step(tree, cache)
    cache.commit(path)
    for node in path:
        one = model.step(Tree.chain([int(tree.tokens[node])]), plain)
        plain.commit([0])
        np.testing.assert_allclose(at_once.logits[node], one.logits[0], atol=1e-4)
        np.testing.assert_allclose(
            at_once.hidden_states[1][node], one.hidden_states[1][0], atol=1e-4
        )
    assert cache.length == plain.length
    for layer in range(model.spec.num_layers):
        for ours, theirs in zip(cache.layer(layer), plain.layer(layer), strict=True):
            np.testing.assert_allclose(ours[: cache.length], theirs[: cache.length], atol=1e-4)
    after = [model.step(Tree.chain([rest]), each).logits for each in (cache, plain)]
    np.testing.assert_allclose(*after, atol=1e-4)


def test_rows_pick_logits() -> None:
    model = backend("llama")
    tree = Tree.chain([5, 6, 7, 8])
    everything = model.step(tree, model.new_cache()).logits
    some = model.step(tree, model.new_cache(), rows=np.array([3, 1])).logits
    np.testing.assert_allclose(some, everything[[3, 1]], atol=1e-5)


def test_nothing_is_staged_by_a_cancelled_step() -> None:
    model = backend("llama")
    cache, stop = read(model, [4, 5, 6]), CancelToken()
    stop.cancel()
    with pytest.raises(Cancelled):
        model.step(Tree.chain([7]), cache, cancel=stop)
    assert (cache.length, cache.staged) == (3, 0)
    assert model.step(Tree.chain([7]), cache).logits.shape == (1, VOCAB_SIZE)


def test_a_full_cache_is_an_overflow() -> None:
    """Slots are rounded up to 128, positions are not."""
    model = backend("llama", max_position_embeddings=70)
    cache = model.new_cache()
    model.step(Tree.chain(np.zeros(66, np.int64)), cache)
    cache.commit(range(66))
    for rows in (5, 80):
        with pytest.raises(ContextOverflow, match="the model holds 70"):
            model.step(Tree.chain(np.zeros(rows, np.int64)), cache)
        assert (cache.length, cache.staged) == (66, 0)
    wide = Tree(np.zeros(30, np.int64), np.array([-1, *[0] * 29]))
    assert model.step(wide, cache).logits.shape == (30, VOCAB_SIZE)


@pytest.mark.parametrize("token", [-1, VOCAB_SIZE])
def test_tokens_outside_the_vocabulary_are_refused(token: int) -> None:
    model = backend("llama")
    cache = model.new_cache()
    with pytest.raises(BackendError, match="outside the vocabulary of 320"):
        model.step(Tree.chain([token]), cache)
    assert cache.staged == 0


def test_threads_are_not_ignored(tmp_path: Path) -> None:
    spec, variant = write(tmp_path, "llama")
    with pytest.raises(OptionError, match="OPENBLAS_NUM_THREADS"):
        ReferenceBackend(tmp_path, spec, variant, threads=2)


def test_closed_is_closed(tmp_path: Path) -> None:
    model = ReferenceBackend(tmp_path, *write(tmp_path, "llama"))
    model.close()
    with pytest.raises(BackendError, match="closed"):
        model.step(Tree.chain([1]), model.new_cache())


@pytest.mark.parametrize("form", ["int8", "int4", "fp16"])
def test_weight_formats_are_decoded(form: str) -> None:
    """Compared with the same values, rounded the same way, stored as float32."""
    tree = Tree.chain(range(4, 16))
    small = backend("llama", form)
    checkpoint = tiny_checkpoint("llama")
    architecture = find_family(checkpoint.config)
    spec = architecture.read(checkpoint.config)
    for name, weight in checkpoint.weights._weights.items():
        if len(weight.shape) == 2:
            rounded = (
                weight.dense().astype(np.float16).astype(np.float32)
                if form == "fp16"
                else quantize(weight.dense(), FORMATS[form].bits or 8).to_dense()
            )
            same = weight.map(lambda _, rounded=rounded: rounded, weight.shape, name)  # type: ignore[misc]
            checkpoint.weights._weights[name] = same
    with tempfile.TemporaryDirectory() as folder:
        request = target_request(
            lambda ops: architecture.build(ops, spec, checkpoint.weights),
            spec.model_spec(),
            Path(folder),
            FORMATS["fp32"],
        )
        plain = ReferenceBackend(Path(folder), spec.model_spec(), emit_reference(request)[0])
    ours = small.step(tree, small.new_cache()).logits
    np.testing.assert_allclose(ours, plain.step(tree, plain.new_cache()).logits, atol=1e-5)


def test_blocks_stay_small(tmp_path: Path) -> None:
    sizes = {}
    for form in ("fp32", "int4"):
        write(tmp_path / form, "llama", form, hidden_size=256, intermediate_size=512)
        path = tmp_path / form / "reference" / "weights.safetensors"
        sizes[form] = path.stat().st_size - (1 << 20)  # the padded header
    assert sizes["int4"] < sizes["fp32"] / 5


def damage(program: dict, how: str) -> None:  # type: ignore[type-arg]
    first = program["instructions"][0]
    if how == "version":
        program["version"] = 2
    elif how == "op":
        first["op"] = "__import__"
    elif how == "order":
        first["inputs"] = ["v9"]
    elif how == "weight":
        first["weights"]["table"] = "nothing"
    elif how == "logits":
        program["logits"] = "v9999"
    elif how == "hidden":
        program["hidden_states"] = {"x": "v0"}
    elif how == "missing":
        del program["instructions"]


HARMS = ["version", "op", "order", "weight", "logits", "hidden", "missing"]


@pytest.mark.parametrize("how", HARMS)
def test_damaged_programs_are_refused(tmp_path: Path, how: str) -> None:
    spec, variant = write(tmp_path, "llama")
    path = tmp_path / variant.model
    program = json.loads(path.read_text())
    damage(program, how)
    path.write_text(json.dumps(program))
    with pytest.raises(BundleError, match="no sound program"):
        ReferenceBackend(tmp_path, spec, variant)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_files_that_are_no_programs_are_refused(tmp_path: Path, content: bytes) -> None:
    spec, variant = write(tmp_path, "llama")
    (tmp_path / variant.model).write_bytes(content)
    with pytest.raises(BundleError, match="no sound program"):
        ReferenceBackend(tmp_path, spec, variant)


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    spec, variant = write(tmp_path, "llama")
    path = tmp_path / "reference" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BundleError, match="no sound program"):
        ReferenceBackend(tmp_path, spec, variant)
