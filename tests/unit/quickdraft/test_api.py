"""`quickdraft.load` passes on what it is given, and counts all of the wait."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny.bundles import tiny_manifest, write_tiny_bundle

import quickdraft
from quickdraft.errors import DeviceError, OptionError
from quickdraft.models import placed
from quickdraft.models import resolve as resolving
from quickdraft.runtime.model import Model

BACKEND = SimpleNamespace(name="onnxruntime", flavour="portable", kv_type="f32", device="CPU")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def open_model(folder: Path, **options: Any) -> SimpleNamespace:
        calls.append({"folder": folder, **options})
        return SimpleNamespace(load_ms=0.0, backend=BACKEND, manifest=options["manifest"])

    monkeypatch.setattr(Model, "open", open_model)
    return calls


def test_load_resolves_and_opens(tmp_path: Path, opened: list[dict[str, Any]]) -> None:
    folder = tmp_path / "bundle"
    write_tiny_bundle(folder)
    options = {"prompt_lookup": {"max_ngram": 3}}
    quickdraft.load(
        folder,
        drafter="prompt_lookup",
        drafter_options=options,
        store=False,
        backend="onnxruntime",
        threads=2,
        kv_cache="int8",
    )
    setup = opened[0].pop("drafting")
    assert (setup.names, setup.options, setup.store) == (("prompt_lookup",), options, False)
    assert setup.open_bundle(str(folder), "auto") == (folder, tiny_manifest())
    assert opened == [
        {
            "folder": folder,
            "manifest": tiny_manifest(),
            "backend": "onnxruntime",
            "threads": 2,
            "kv_cache": "int8",
            "name": str(folder),
            "progress": None,
        }
    ]


def test_load_ms_counts_resolving(
    tmp_path: Path, opened: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    resolve = resolving.resolve

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.05)
        return resolve(*arguments, **options)

    monkeypatch.setattr(placed, "resolve", slow)
    assert quickdraft.load(tmp_path / "bundle").load_ms >= 50


@pytest.mark.parametrize("device", ["tpu", "", "CPU"])
def test_unknown_devices_are_refused_with_the_list(device: str, cache: Path) -> None:
    with pytest.raises(DeviceError, match="see `quickdraft device list`"):
        quickdraft.load("smollm2-135m", device=device)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"drafter": "prompt_lokup"}, "did you mean 'prompt_lookup'"),
        ({"drafter": "prompt_lookup,prompt_lookup"}, "names 'prompt_lookup' twice"),
        ({"drafter": "none,prompt_lookup"}, "unknown drafter 'none'"),
        ({"drafter": ""}, "unknown drafter ''"),
        ({"drafter_options": {"prompt_lokup": {}}}, "did you mean 'prompt_lookup'"),
        ({"drafter": "none", "drafter_options": {"prompt_lookup": {}}}, "add prompt_lookup to it"),
    ],
)
def test_unusable_drafters_are_refused_before_anything_is_fetched(
    options: dict[str, Any], says: str, cache: Path
) -> None:
    with pytest.raises(OptionError, match=says):
        quickdraft.load("smollm2-135m", **options)
    assert not cache.exists()


def test_a_prefill_is_made_ready_when_the_model_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    calls: list[str] = []
    model = SimpleNamespace(use_prefill=calls.append, close=lambda: calls.append("close"))
    model.backend, model.manifest = BACKEND, tiny_manifest()
    monkeypatch.setattr(Model, "open", lambda folder, **options: model)
    assert quickdraft.load(tmp_path / "bundle", prefill="hybrid:8+refresh") is model
    assert calls == ["hybrid:8+refresh"]

    def refuse(prefill: str) -> None:
        raise OptionError("there is no predictor")

    model.use_prefill = refuse
    with pytest.raises(OptionError, match="no predictor"):
        quickdraft.load(tmp_path / "bundle", prefill="predicted")
    assert calls == ["hybrid:8+refresh", "close"]


def test_an_unknown_prefill_is_refused_before_anything_is_fetched(cache: Path) -> None:
    with pytest.raises(OptionError, match="prefill is 'guessed'; it must be exact, predicted or"):
        quickdraft.load("smollm2-135m", prefill="guessed")
    assert not cache.exists()


def test_an_unknown_kv_type_is_refused_before_anything_is_fetched() -> None:
    with pytest.raises(OptionError, match="kv_cache is 'f8'; it must be one of f16, f32, int8"):
        quickdraft.load("smollm2-135m", kv_cache="f8")
