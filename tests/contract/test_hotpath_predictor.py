"""Predictors of the hot path, on one that predicts the exact cache: its auxiliary is the target.

Every law of Predictor, and the bits: what KvWrite puts into the target's cache is what attention
would, in any chunks, type, and number of threads.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tiny.hotpath_models import backend, bits, plain, random_tokens, same_rows
from tiny.hotpath_parts import with_predictor

from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, BundleError, Cancelled, ContextOverflow
from quickdraft.kvcache.blocked import KV_TYPES, BlockedCache
from quickdraft.manifest import SlotsLayout
from quickdraft.runtime.backends import hotpath_predictor, ort_session
from quickdraft.runtime.backends.base import CancelToken
from quickdraft.runtime.backends.hotpath import HotpathBackend
from quickdraft.runtime.backends.hotpath_predictor import HotpathPredictor

pytestmark = pytest.mark.native

CASES = [
    *((name, "int8", "f16") for name in ("llama", "gemma2", "gpt2", "qwen3", "phi3-window")),
    *(("openelm", "fp32", kv) for kv in KV_TYPES),
    ("stablelm-parallel-normed", "fp32", "f16"),
    ("llama", "w4k", "int8"),
]


def opened(
    name: str = "llama", form: str = "int8", kv: str = "f16", threads: int = 2
) -> tuple[HotpathBackend, HotpathPredictor]:
    """A model and its predictor."""
    request, variant = with_predictor(name, form)
    model = backend(name, form, kv)
    return model, HotpathPredictor(model, request.folder, variant, threads)


@pytest.mark.parametrize(("name", "form", "kv"), CASES)
def test_identity_maps_of_the_target_predict_the_exact_cache(name: str, form: str, kv: str) -> None:
    model, predictor = opened(name, form, kv)
    tokens = random_tokens(60, seed=3)
    _, exact = plain(model, tokens)
    cache = model.new_cache()
    predictor.predict(np.array(tokens), cache)
    assert cache.length == cache.predicted == len(tokens)
    assert same_rows(cache, exact)
    after = [model.step(Tree.chain([5, 6]), each) for each in (cache, exact)]
    assert bits(after[0]) == bits(after[1])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("held", [0, 1, 5, 40])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_and_exact_rows(
    chunk: int, held: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hotpath_predictor, "CHUNK", chunk)
    model, predictor = opened(threads=threads)
    tokens = np.array(random_tokens(41, seed=4))
    _, exact = plain(model, tokens.tolist())
    cache = exact.fork()
    cache.truncate(held)
    before = [rows.copy() for rows in cache.rows()]
    predictor.predict(tokens, cache)
    assert cache.predicted == 41
    assert same_rows(cache, exact)
    assert all(np.array_equal(a, b[:held]) for a, b in zip(before, cache.rows(), strict=True))


def test_a_cache_grows_once_and_keeps_its_rows() -> None:
    model, predictor = opened()
    tokens = np.array(random_tokens(90, seed=5))
    _, exact = plain(model, tokens.tolist())
    cache = BlockedCache(model.spec, "f16", capacity=16)
    model.step(Tree.chain(tokens[:9]), cache)
    cache.commit(range(9))
    predictor.predict(tokens, cache)
    assert cache.version == 1
    assert same_rows(cache, exact)


class Later(CancelToken):
    """Cancels when a run is under way for the second time."""

    runs = 0

    def attach(self, callback: Callable[[], None] | None) -> None:
        self.runs += callback is not None
        super().attach(callback)
        if self.runs == 2:
            self.cancel()


@pytest.mark.parametrize("held", [0, 6])
def test_cancelling_leaves_the_cache_as_it_was(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hotpath_predictor, "CHUNK", 16)
    model, predictor = opened()
    tokens = np.array(random_tokens(60, seed=6))
    _, exact = plain(model, tokens.tolist())
    cache = exact.fork()
    cache.truncate(held)
    for cancel in (CancelToken(), Later()):
        if type(cancel) is CancelToken:
            cancel.cancel()
        with pytest.raises(Cancelled):
            predictor.predict(tokens, cache, cancel)
        assert (cache.length, cache.staged, cache.predicted) == (held, 0, 0)
    predictor.predict(tokens, cache, CancelToken())
    assert same_rows(cache, exact)


def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    model, predictor = opened()
    cache = model.new_cache()
    for token in (-1, 320):
        with pytest.raises(BackendError, match="a token id is outside the vocabulary of 320"):
            predictor.predict(np.array([3, token]), cache)
    long = np.zeros(model.spec.context_length + 1, np.int64)
    with pytest.raises(ContextOverflow, match=f"the prompt needs {len(long)} tokens"):
        predictor.predict(long, cache)
    with pytest.raises(BackendError, match="this predictor fills other caches than str"):
        predictor.predict(np.zeros(1, np.int64), "cache")  # type: ignore[arg-type]

    def fails(*_: Any) -> None:
        raise BackendError("onnxruntime failed in a step: out of luck")

    monkeypatch.setattr(ort_session.Bound, "run", fails)
    with pytest.raises(BackendError, match="out of luck"):
        predictor.predict(np.zeros(3, np.int64), cache)
    assert (cache.length, cache.staged, cache.predicted) == (0, 0, 0)
    predictor.close()
    with pytest.raises(BackendError, match="the predictor was closed"):
        predictor.predict(np.zeros(3, np.int64), cache)


def test_nothing_of_a_prediction_is_kept() -> None:
    model, predictor = opened()
    cache = model.new_cache()
    predictor.predict(np.arange(9), cache)
    held = weakref.ref(cache.buffer.base)
    del cache
    gc.collect()
    assert held() is None


def test_the_longest_prompt_fits() -> None:
    model, predictor = opened(form="fp32")
    tokens = np.array(random_tokens(model.spec.context_length, seed=8))
    cache = model.new_cache()
    predictor.predict(tokens, cache)
    assert cache.length == len(tokens)


def test_a_variant_that_is_no_predictor_or_of_another_kind() -> None:
    request, variant = with_predictor("llama", "int8")
    slots = SlotsLayout("slots", 16, *(f"{name}{{layer}}" for name in "abcd"))
    for wrong in (replace(variant, target_cache=None), replace(variant, target_cache=slots)):
        with pytest.raises(BundleError, match="no predictor for caches of the hotpath flavour"):
            HotpathPredictor(backend(), request.folder, wrong)


def test_a_graph_that_is_not_what_the_manifest_says() -> None:
    request, variant = with_predictor("llama", "int8")
    step = replace(variant.step, target_past="elsewhere")
    with pytest.raises(BundleError, match="disagree about the input 'elsewhere'"):
        HotpathPredictor(backend(), request.folder, replace(variant, step=step))


def test_several_conversations_at_once() -> None:
    model, predictor = opened()
    prompts = [np.array(random_tokens(20 + 13 * seed, seed)) for seed in range(4)]
    expected = [plain(model, prompt.tolist())[1] for prompt in prompts]

    def works(index: int) -> bool:
        for _ in range(5):
            cache = model.new_cache()
            predictor.predict(prompts[index], cache)
            if not same_rows(cache, expected[index]):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(works, range(4)))
