"""Where the hotpath flavour cannot run, it says why and what to do; where it can, what it holds."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
from tiny.hotpath_models import backend, exported, random_tokens

from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, MissingExtra, OptionError
from quickdraft.kvcache.blocked import BlockedCache
from quickdraft.runtime import native
from quickdraft.runtime.backends import hotpath, ort_session
from quickdraft.runtime.backends.hotpath import HotpathBackend
from quickdraft.runtime.backends.onnxruntime import OnnxRuntimeBackend
from quickdraft.runtime.backends.reference import ReferenceBackend

native_only = pytest.mark.native


def opened(kv_cache: str | None = None) -> HotpathBackend:
    request, variant = exported("llama", "fp32")
    return HotpathBackend(request.folder, request.parts[0].spec, variant, 1, kv_cache)


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_session, "ort", None)
    with pytest.raises(MissingExtra, match=r"quickdraft\[onnx\]"):
        opened()


@pytest.mark.parametrize("version", ["1.23.2", "1.9.0", "0.99"])
def test_an_old_onnxruntime(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_session.ort, "__version__", version)
    with pytest.raises(BackendError, match=f"onnxruntime {version} is too old.*>=1.24"):
        opened()
    assert "too old" in str(hotpath.problem())


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library_path", lambda: None)
    with pytest.raises(BackendError, match="no native library"):
        opened()
    assert "no native library" in str(hotpath.problem())


@native_only
def test_a_library_that_onnxruntime_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ort_session.options

    def options(threads: int | None) -> object:
        class Refusing:
            def add_session_config_entry(self, key: str, value: str) -> None:
                assert int(value) > 0

            def register_custom_ops_library(self, path: str) -> None:
                raise RuntimeError("the canary sang wrong")

        assert real(threads) is not None
        return Refusing()

    monkeypatch.setattr(ort_session, "options", options)
    with pytest.raises(BackendError, match=r"does not take the ops of .*the canary sang wrong"):
        opened()


@native_only
@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_threads_that_cannot_be(threads: int) -> None:
    with pytest.raises(BackendError, match=r"quickdraft\.threads must be .* from 1 to 1024"):
        hotpath.session_options(threads)


@native_only
def test_where_nothing_is_wrong_there_is_no_problem() -> None:
    assert hotpath.problem() is None
    assert opened().isa == native.isa()


@native_only
@pytest.mark.parametrize(("asked", "found"), [(None, "f16"), ("f32", "f32"), ("int8", "int8")])
def test_the_kv_type_is_what_was_asked_for(asked: str | None, found: str) -> None:
    model = opened(asked)
    assert model.kv_type == model.new_cache().kv_type == found


@native_only
def test_an_unknown_kv_type() -> None:
    with pytest.raises(OptionError, match="kv_cache is 'f8'; it must be one of f16, f32, int8"):
        opened("f8")


@pytest.mark.parametrize("kind", [OnnxRuntimeBackend, ReferenceBackend])
@pytest.mark.parametrize("kv_cache", ["f16", "int8", "f8"])
def test_other_backends_refuse_kv_types(kind: type, kv_cache: str, tmp_path: Path) -> None:
    request, variant = exported("llama", "fp32")
    with pytest.raises(OptionError, match=f"kv_cache is '{kv_cache}', and the backend"):
        kind(tmp_path, request.parts[0].spec, variant, kv_cache=kv_cache)


@native_only
def test_memory_of_a_step_shape_is_used_again_and_bounded() -> None:
    model, cache = backend(), backend().new_cache()
    first = model.step(Tree.chain([1, 2]), cache, full_logits=False)
    before = first.top.values.copy()
    second = model.step(Tree.chain([3, 4]), cache, full_logits=False)
    assert second.top.values is first.top.values
    assert (second.top.values != before).any()
    frames = model._states[cache].frames
    for n in range(1, 3 * hotpath.MAX_FRAMES):
        model.step(Tree.chain(np.zeros(n, np.int64)), cache, full_logits=False)
    assert len(frames) <= hotpath.MAX_FRAMES + 1


@native_only
def test_a_cache_that_grew_lets_go_of_its_old_memory() -> None:
    model = backend()
    cache = BlockedCache(model.spec, capacity=16)
    held = weakref.ref(cache.buffer.base)
    model.step(Tree.chain(random_tokens(3, 0)), cache)
    cache.commit(range(3))
    assert held() is not None
    model.step(Tree.chain(random_tokens(20, 1)), cache)
    gc.collect()
    assert held() is None
