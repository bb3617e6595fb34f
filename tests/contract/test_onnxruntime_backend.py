"""What the ONNX Runtime backend promises beyond numbers: errors, cancellation, independence."""

from __future__ import annotations

import platform
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny.checkpoint import VOCAB_SIZE, tiny_checkpoint

from quickdraft.bundle import open_bundle
from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, BundleError, Cancelled, ContextOverflow
from quickdraft.export.pipeline import export_checkpoint
from quickdraft.runtime.backends.base import CancelToken
from quickdraft.runtime.backends.onnxruntime import OnnxRuntimeBackend


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "tiny"
    export_checkpoint(tiny_checkpoint("llama", max_position_embeddings=96), path, weights="int8")
    return path


@pytest.fixture
def model(folder: Path) -> OnnxRuntimeBackend:
    manifest = open_bundle(folder).manifest
    return OnnxRuntimeBackend(folder, manifest.model, manifest.roles["target"][0], threads=1)


def test_context_is_bounded_by_positions_not_slots(model: OnnxRuntimeBackend) -> None:
    cache = model.new_cache()
    model.step(Tree.chain(np.zeros(90, np.int64)), cache)
    cache.commit(range(90))
    model.step(Tree.chain(np.zeros(6, np.int64)), cache)
    with pytest.raises(ContextOverflow, match="97 tokens and the model holds 96"):
        model.step(Tree.chain(np.zeros(7, np.int64)), cache)
    assert (cache.length, cache.staged) == (90, 6)


@pytest.mark.parametrize("token", [-1, VOCAB_SIZE])
def test_tokens_outside_the_vocabulary(model: OnnxRuntimeBackend, token: int) -> None:
    with pytest.raises(BackendError, match="outside the vocabulary of 320"):
        model.step(Tree.chain([token]), model.new_cache())


def test_a_cancelled_step_leaves_a_usable_cache(model: OnnxRuntimeBackend) -> None:
    cache, fresh = model.new_cache(), model.new_cache()
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        model.step(Tree.chain([1, 2]), cache, cancel=token)
    assert (cache.length, cache.staged) == (0, 0)
    again = model.step(Tree.chain([1, 2]), cache).logits
    assert again.tobytes() == model.step(Tree.chain([1, 2]), fresh).logits.tobytes()


def test_cancelling_from_another_thread_stops_within_a_step(model: OnnxRuntimeBackend) -> None:
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


def test_conversations_in_threads_do_not_mix(model: OnnxRuntimeBackend) -> None:
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


def test_a_forked_cache_goes_its_own_way(model: OnnxRuntimeBackend) -> None:
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
    manifest = open_bundle(folder).manifest
    model = OnnxRuntimeBackend(folder, manifest.model, manifest.roles["target"][0])
    cache = model.new_cache()
    model.close()
    with pytest.raises(BackendError, match="closed"):
        model.step(Tree.chain([1]), cache)


def test_closing_within_a_step_lets_it_end(
    model: OnnxRuntimeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model.step(Tree.chain([1]), model.new_cache()).logits
    cache = model.new_cache()
    stage = cache.stage
    monkeypatch.setattr(cache, "stage", lambda rows: (model.close(), stage(rows)))
    assert model.step(Tree.chain([1]), cache).logits.tobytes() == expected.tobytes()
    with pytest.raises(BackendError, match="the model was closed"):
        model.step(Tree.chain([1]), cache)


def test_a_file_that_is_no_model(folder: Path, tmp_path: Path) -> None:
    manifest = open_bundle(folder).manifest
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(BackendError, match=r"cannot load model\.onnx"):
        OnnxRuntimeBackend(tmp_path, manifest.model, manifest.roles["target"][0])


def test_bits_are_promised_where_they_were_tested(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = open_bundle(folder).manifest
    for machine, guarantee in (("x86_64", "bit_identical"), ("arm64", "same_distribution")):
        monkeypatch.setattr(platform, "machine", lambda name=machine: name)
        model = OnnxRuntimeBackend(folder, manifest.model, manifest.roles["target"][0])
        assert model.guarantee == guarantee


@pytest.mark.parametrize("field", ["tokens", "logits"])
def test_a_manifest_that_names_other_tensors(folder: Path, field: str) -> None:
    manifest = open_bundle(folder).manifest
    variant = manifest.roles["target"][0]
    lying = replace(variant, step=replace(variant.step, **{field: "other"}))
    with pytest.raises(BundleError, match=r"disagree about the (in|out)put"):
        OnnxRuntimeBackend(folder, manifest.model, lying)
