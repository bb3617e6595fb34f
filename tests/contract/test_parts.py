"""Parts beside the target, written by every emitter and run by every backend: one meaning.

The bundle is made as users make it: a trained file, exported with its target, opened again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny import toy_parts
from tiny.toy_parts import AHEAD, FORMATS, TOKENS

from quickdraft import registry
from quickdraft.bundle import Bundle
from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, BundleError, Cancelled, ContextOverflow
from quickdraft.kvcache.blocked import BlockedCache
from quickdraft.kvcache.by_head import ByHeadCache
from quickdraft.kvcache.contiguous import ContiguousCache
from quickdraft.runtime.backends.base import (
    Backend,
    CancelToken,
    HeadBackend,
    Predictor,
    StepOutput,
)
from quickdraft.runtime.backends.opening import (
    find_part,
    open_backend,
    open_part,
    open_predictor,
)

WIDTH, N = 32, 37
BACKENDS = [
    "reference",
    "onnxruntime",
    "onnxruntime_static",
    pytest.param("hotpath", marks=pytest.mark.native),
    pytest.param("openvino", marks=pytest.mark.openvino),
    pytest.param("openvino-static", marks=pytest.mark.openvino),
]
every_backend = pytest.mark.parametrize("name", BACKENDS)
RANDOM = np.random.default_rng(5)
PROMPT = RANDOM.integers(4, 320, N)
FEATURES = RANDOM.standard_normal((N, 3 * WIDTH)).astype(np.float32)
TREE = Tree(np.array([9, 8, 7, 300, 5, 4], np.int64), np.array([-1, 0, 0, 1, 1, 2], np.int64))


def bundle(name: str, family: str = "llama") -> Bundle:
    """The bundle that a backend opens; that of OpenVINO takes OpenVINO to write."""
    own = {"onnxruntime_static": "onnx-static"}.get(name, name)
    apart = "openvino" in name or own != name
    return toy_parts.bundle(family, (own,) if apart else FORMATS)


def backend_of(name: str) -> str:
    """The backend, without the flavour that it opens."""
    return name.partition("-")[0]


def _exact(name: str) -> dict[str, str]:
    return {"kv_cache": "f32"} if name == "hotpath" else {}


@functools.cache
def target(name: str, family: str = "llama") -> Backend:
    """The target on a backend, with a cache of float32."""
    found = bundle(name, family)
    return open_backend(
        found.folder, found.manifest, backend_of(name), None, **_exact(name)
    ).backend


@functools.cache
def head(name: str, part: str) -> HeadBackend:
    """A head on a backend."""
    found = bundle(name)
    return open_part(
        found.folder, found.manifest, backend_of(name), "drafter", part, **_exact(name)
    )


def predictor(name: str, part: str, family: str = "llama") -> Predictor:
    found = bundle(name, family)
    return open_predictor(found.folder, found.manifest, target(name, family), part)


def rows(cache: Any) -> list[NDArray[np.float32]]:
    """Committed keys and values of every layer."""
    if isinstance(cache, BlockedCache):
        return cache.rows()
    assert isinstance(cache, ContiguousCache | ByHeadCache)
    layers = range(len(cache._layers))
    return [np.array(array[: cache.length]) for i in layers for array in cache.layer(i)]


def prefilled(model: Backend, tokens: NDArray[np.int64]) -> Any:
    """A cache that the model computed itself."""
    cache = model.new_cache()
    if len(tokens):
        model.step(Tree.chain(tokens), cache, full_logits=False)
        cache.commit(range(len(tokens)))
    return cache


def run_head(model: HeadBackend, chunk: int) -> tuple[list[StepOutput], Any]:
    """Outputs over the prompt in chunks and a tree after it, copied."""
    cache, outputs = model.new_cache(), []
    starts = range(0, N, chunk)
    for tree, features in [
        *((Tree.chain(PROMPT[s : s + chunk]), FEATURES[s : s + chunk]) for s in starts),
        (TREE, FEATURES[: len(TREE)]),
    ]:
        found = model.step(tree, cache, features=features)
        hidden = {layer: np.array(values) for layer, values in found.hidden_states.items()}
        outputs.append(StepOutput(np.array(found.logits), hidden))
        if tree is not TREE:
            cache.commit(range(len(tree)))
    return outputs, cache


def close(ours: Any, theirs: Any, atol: float = 1e-4) -> None:
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


@every_backend
def test_a_head_that_attends(name: str) -> None:
    ours, _ = run_head(head(name, "attends"), N)
    theirs, _ = run_head(head("reference", "attends"), N)
    for mine, other in zip(ours, theirs, strict=True):
        assert other.logits.std() > 0.5
        assert other.hidden_states[1].std() > 0.5
        close(mine.logits, other.logits)
        close(mine.hidden_states[1], other.hidden_states[1])


@every_backend
@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_a_head_does_not_know_its_chunks(name: str, chunk: int) -> None:
    whole, cut = (run_head(head(name, "attends"), size) for size in (N, chunk))
    exact = name == "hotpath"
    together = np.concatenate([output.logits for output in cut[0][:-1]])
    for mine, other in (
        (together, whole[0][0].logits),
        (cut[0][-1].logits, whole[0][-1].logits),
        (cut[0][-1].hidden_states[1], whole[0][-1].hidden_states[1]),
        *zip(rows(cut[1]), rows(whole[1]), strict=True),
    ):
        close(mine, other, 0 if exact else 1e-5)


@every_backend
def test_heads_of_several_tokens_ahead(name: str) -> None:
    """Rows are counted across the stack: those of head i start at i * n."""
    model, tree = head(name, "ahead"), Tree.chain(PROMPT[:4])
    wanted = np.array([0, 3, 4, 11])
    found = model.step(tree, model.new_cache(), wanted, features=FEATURES[:4])
    oracle = head("reference", "ahead")
    every = np.arange(4 * AHEAD)
    all_rows = oracle.step(tree, oracle.new_cache(), every, features=FEATURES[:4]).logits
    assert all_rows.shape == (4 * AHEAD, len(TOKENS))
    close(found.logits, all_rows[wanted])
    assert not found.hidden_states


@every_backend
def test_a_head_reads_what_its_target_offers(name: str) -> None:
    found = bundle(name)
    variant = find_part(found.manifest, backend_of(name), "drafter", "attends")
    model = target(name)
    offered = model.step(Tree.chain(PROMPT), model.new_cache()).hidden_states
    joined = np.concatenate([offered[k] for k in variant.details["hidden_states"]], axis=1)
    assert joined.shape == (N, variant.features)
    tree = Tree.chain(PROMPT)
    part, oracle = head(name, "attends"), head("reference", "attends")
    mine = part.step(tree, part.new_cache(), features=joined).logits
    close(mine, oracle.step(tree, oracle.new_cache(), features=joined).logits)


@every_backend
def test_features_are_needed_where_there_are_some(name: str) -> None:
    part, tree = head(name, "attends"), Tree.chain([5, 6])
    for wrong in (None, FEATURES[:1], FEATURES[:2, :-1]):
        cache = part.new_cache()
        with pytest.raises(BackendError, match="takes features"):
            part.step(tree, cache, features=wrong)
        assert cache.staged == 0
    model: Any = target(name)
    with pytest.raises(BackendError, match="takes no features"):
        model.step(tree, model.new_cache(), features=FEATURES[:2])


@every_backend
def test_a_head_reads_tokens_of_its_target(name: str) -> None:
    """Its own vocabulary is smaller."""
    part = head(name, "attends")
    assert part.spec.vocab_size == len(TOKENS) < 319
    assert part.step(Tree.chain([319]), part.new_cache(), features=FEATURES[:1]).logits.size
    with pytest.raises(BackendError, match="outside the vocabulary of 320"):
        part.step(Tree.chain([320]), part.new_cache(), features=FEATURES[:1])


@every_backend
def test_an_auxiliary_is_a_backend(name: str) -> None:
    models = []
    for each in (name, "reference"):
        found, backend = bundle(each), backend_of(each)
        options = _exact(each)
        models.append(
            open_part(found.folder, found.manifest, backend, "auxiliary", "small", **options)
        )
    assert models[0].spec.num_layers == 1
    caches = [prefilled(model, PROMPT) for model in models]
    outputs = [model.step(TREE, cache).logits for model, cache in zip(models, caches, strict=True)]
    close(*outputs)


@every_backend
@pytest.mark.parametrize("held", [0, 4])
def test_an_auxiliary_that_is_the_target_predicts_the_exact_cache(name: str, held: int) -> None:
    model = target(name)
    cache, exact = prefilled(model, PROMPT[:held]), prefilled(model, PROMPT)
    predictor(name, "echo").predict(PROMPT, cache)
    assert cache.length == cache.predicted == N
    after = [np.array(model.step(TREE, each).logits) for each in (cache, exact)]
    bits = name == "hotpath"
    close(*after, atol=0 if bits else 1e-4)
    for mine, other in zip(rows(cache), rows(exact), strict=True):
        close(mine, other, 0 if bits else 1e-5)


@every_backend
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_predictor_writes_what_the_reference_does(name: str, family: str) -> None:
    """Fewer layers than the target, maps for the others; windows, caps and offsets in gemma2."""
    model, oracle = target(name, family), target("reference", family)
    caches = model.new_cache(), oracle.new_cache()
    predictor(name, "half", family).predict(PROMPT, caches[0])
    predictor("reference", "half", family).predict(PROMPT, caches[1])
    exact = prefilled(oracle, PROMPT)
    for index, (mine, other) in enumerate(zip(*map(rows, caches), strict=True)):
        close(mine.reshape(other.shape), other)
        # The first layer tells what it knows; the second guesses.
        near = np.abs(other - rows(exact)[index]).max() < 1e-5
        assert near == (index < 2)
    close(model.step(TREE, caches[0]).logits, oracle.step(TREE, caches[1]).logits)


SLOTS = "quickdraft.runtime.backends.slots_predictor.CHUNK"
CHUNKED = {"hotpath": "quickdraft.runtime.backends.hotpath_predictor.CHUNK"}


@every_backend
@pytest.mark.parametrize("held", [0, 1, 9])
@pytest.mark.parametrize("chunk", [1, 5, 36])
def test_a_predictor_does_not_know_its_chunks(
    name: str, held: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, part = target(name), predictor(name, "half")
    before = prefilled(model, PROMPT[:held])
    caches = before.fork(), before.fork()
    part.predict(PROMPT, caches[0])
    monkeypatch.setattr(CHUNKED.get(name, SLOTS), chunk)
    part.predict(PROMPT, caches[1])
    assert caches[1].predicted == N
    for whole, cut, kept in zip(*map(rows, (*caches, before)), strict=True):
        close(cut, whole, 0 if name == "hotpath" else 1e-5)
        assert np.array_equal(cut[:held], kept)
        assert np.array_equal(whole[:held], kept)


class Soon(CancelToken):
    """Cancels when it is asked for the third time."""

    asked = 0

    def check(self) -> None:
        """Counts."""
        self.asked += 1
        if self.asked == 3:
            self.cancel()
        super().check()


@every_backend
@pytest.mark.parametrize("held", [0, 3])
@pytest.mark.parametrize("cancel", [CancelToken, Soon])
def test_a_cancelled_prediction_leaves_the_cache_as_it_was(
    name: str, held: int, cancel: Callable[[], CancelToken], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CHUNKED.get(name, SLOTS), 8)
    model, part, token = target(name), predictor(name, "half"), cancel()
    if type(token) is CancelToken:
        token.cancel()
    cache = prefilled(model, PROMPT[:held])
    before = rows(cache)
    with pytest.raises(Cancelled):
        part.predict(PROMPT, cache, token)
    assert (cache.length, cache.staged, cache.predicted) == (held, 0, 0)
    assert all(np.array_equal(a, b) for a, b in zip(before, rows(cache), strict=True))
    part.predict(PROMPT, cache)
    assert cache.predicted == N


@every_backend
def test_what_a_predictor_refuses(name: str) -> None:
    model, part = target(name), predictor(name, "half")
    cache, limit = model.new_cache(), model.spec.context_length
    with pytest.raises(BackendError, match="outside the vocabulary of 320"):
        part.predict(np.array([3, 320]), cache)
    with pytest.raises(ContextOverflow, match=f"the prompt needs {limit + 1} tokens"):
        part.predict(np.zeros(limit + 1, np.int64), cache)
    wrong: Any = "cache"
    with pytest.raises(BackendError, match="fills other caches than str"):
        part.predict(PROMPT, wrong)
    part.close()
    with pytest.raises(BackendError, match="closed"):
        part.predict(PROMPT, cache)
    assert (cache.length, cache.staged, cache.predicted) == (0, 0, 0)


@every_backend
def test_a_part_of_another_role_is_no_predictor(name: str) -> None:
    found = bundle(name)
    variant = find_part(found.manifest, backend_of(name), "auxiliary")
    kind = registry.lookup("backend of predictors", registry.PREDICTORS, backend_of(name))
    with pytest.raises(BundleError, match="is no predictor for caches of"):
        kind(target(name), found.folder, variant)
