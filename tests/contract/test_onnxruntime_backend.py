"""What the backends over ONNX Runtime promise beyond numbers: errors, independence, an end."""

from __future__ import annotations

import platform
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny.checkpoint import VOCAB_SIZE, tiny_checkpoint

from quickdraft.bundle import open_bundle
from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, BundleError, Cancelled, ContextOverflow
from quickdraft.export.pipeline import export_checkpoint
from quickdraft.kvcache.blocked import BlockedCache
from quickdraft.kvcache.contiguous import ContiguousCache
from quickdraft.runtime.backends.base import CancelToken
from quickdraft.runtime.backends.hotpath import HotpathBackend
from quickdraft.runtime.backends.onnxruntime import OnnxRuntimeBackend

Model = OnnxRuntimeBackend | HotpathBackend


@pytest.fixture(scope="module", params=["onnx", pytest.param("hotpath", marks=pytest.mark.native)])
def form(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(form: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "tiny"
    checkpoint = tiny_checkpoint("llama", max_position_embeddings=96)
    export_checkpoint(checkpoint, path, weights="int8", formats=[form])
    return path


def load(folder: Path, **changes: Any) -> Model:
    """The backend of the only variant of a bundle. changes: of that variant."""
    manifest = open_bundle(folder).manifest
    variant = replace(manifest.roles["target"][0], **changes)
    kind = HotpathBackend if variant.flavour == "hotpath" else OnnxRuntimeBackend
    return kind(folder, manifest.model, variant, threads=1)


@pytest.fixture
def model(folder: Path) -> Model:
    return load(folder)


def test_context_is_bounded_by_positions_not_slots(model: Model) -> None:
    cache = model.new_cache()
    model.step(Tree.chain(np.zeros(90, np.int64)), cache)
    cache.commit(range(90))
    model.step(Tree.chain(np.zeros(6, np.int64)), cache)
    with pytest.raises(ContextOverflow, match="97 tokens and the model holds 96"):
        model.step(Tree.chain(np.zeros(7, np.int64)), cache)
    assert (cache.length, cache.staged) == (90, 6)


@pytest.mark.parametrize("token", [-1, VOCAB_SIZE])
def test_tokens_outside_the_vocabulary(model: Model, token: int) -> None:
    with pytest.raises(BackendError, match="outside the vocabulary of 320"):
        model.step(Tree.chain([token]), model.new_cache())


def test_a_cancelled_step_leaves_a_usable_cache(model: Model) -> None:
    cache, fresh = model.new_cache(), model.new_cache()
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        model.step(Tree.chain([1, 2]), cache, cancel=token)
    assert (cache.length, cache.staged) == (0, 0)
    again = model.step(Tree.chain([1, 2]), cache).logits
    assert again.tobytes() == model.step(Tree.chain([1, 2]), fresh).logits.tobytes()


def test_cancelling_from_another_thread_stops_within_a_step(model: Model) -> None:
    cache, token = model.new_cache(), CancelToken()
    threading.Timer(0.05, token.cancel).start()
    chunk = Tree.chain(np.arange(90))

    def work() -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            model.step(chunk, cache, cancel=token)

    with pytest.raises(Cancelled):
        work()
    model.step(chunk, cache)
    assert cache.staged == 90


def test_conversations_in_threads_do_not_mix(model: Model) -> None:
    def run(seed: int) -> bytes:
        tokens = np.random.default_rng(seed).integers(0, VOCAB_SIZE, 60)
        cache, rows = model.new_cache(), []
        for token in tokens:
            rows.append(model.step(Tree.chain([token]), cache).logits.copy())
            cache.commit([0])
        return np.concatenate(rows).tobytes()

    alone = [run(seed) for seed in range(4)]
    together: dict[int, bytes] = {}
    threads = [
        threading.Thread(target=lambda s=seed: together.update({s: run(s)})) for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[seed] for seed in range(4)] == alone


def test_a_forked_cache_goes_its_own_way(model: Model) -> None:
    cache = model.new_cache()
    model.step(Tree.chain([5, 6, 7]), cache)
    cache.commit(range(3))
    twin = cache.fork()
    model.step(Tree.chain([8]), cache)
    cache.commit([0])
    expected = model.step(Tree.chain([9]), twin).logits
    whole = model.step(Tree.chain([5, 6, 7, 9]), model.new_cache()).logits[-1:]
    assert expected.tobytes() == whole.tobytes()


def test_a_closed_model_says_so(folder: Path) -> None:
    model = load(folder)
    cache = model.new_cache()
    model.close()
    with pytest.raises(BackendError, match="closed"):
        model.step(Tree.chain([1]), cache)


def test_closing_within_a_step_lets_it_end(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model.step(Tree.chain([1]), model.new_cache()).logits
    cache = model.new_cache()
    stage = cache.stage
    monkeypatch.setattr(cache, "stage", lambda rows: (model.close(), stage(rows)))
    assert model.step(Tree.chain([1]), cache).logits.tobytes() == expected.tobytes()
    with pytest.raises(BackendError, match="the model was closed"):
        model.step(Tree.chain([1]), cache)


def test_a_file_that_is_no_model(folder: Path, tmp_path: Path) -> None:
    manifest = open_bundle(folder).manifest
    variant = manifest.roles["target"][0]
    path = tmp_path / variant.model
    path.parent.mkdir()
    path.write_bytes(b"not a graph")
    kind = HotpathBackend if variant.flavour == "hotpath" else OnnxRuntimeBackend
    with pytest.raises(BackendError, match=r"cannot load model\.onnx"):
        kind(tmp_path, manifest.model, variant)


def test_bits_are_promised_where_they_were_tested(
    folder: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = {"onnx": "same_distribution", "hotpath": "bit_identical"}[form]
    for machine, guarantee in (("x86_64", "bit_identical"), ("arm64", elsewhere)):
        monkeypatch.setattr(platform, "machine", lambda name=machine: name)
        assert load(folder).guarantee == guarantee


@pytest.mark.parametrize("field", ["tokens", "logits"])
def test_a_manifest_that_names_other_tensors(folder: Path, field: str) -> None:
    step = open_bundle(folder).manifest.roles["target"][0].step
    with pytest.raises(BundleError, match=r"disagree about the (in|out)put"):
        load(folder, step=replace(step, **{field: "other"}))


def test_a_backend_refuses_the_other_flavour(folder: Path, form: str) -> None:
    other = {"onnx": "hotpath", "hotpath": "portable"}[form]
    with pytest.raises(BundleError, match="use the backend of its flavour"):
        load(folder, flavour=other)


def test_a_cache_of_another_backend(model: Model) -> None:
    stranger = ContiguousCache if isinstance(model, HotpathBackend) else BlockedCache
    with pytest.raises(BackendError, match=f"its own caches, not {stranger.__name__}"):
        model.step(Tree.chain([1]), stranger(model.spec))
