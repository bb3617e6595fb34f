"""`quickdraft.load` passes on what it is given, and counts all of the wait."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny.bundles import tiny_manifest, write_tiny_bundle

import quickdraft
from quickdraft.errors import OptionError
from quickdraft.models import resolve as resolving
from quickdraft.runtime.model import Model


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def open_model(folder: Path, **options: Any) -> SimpleNamespace:
        calls.append({"folder": folder, **options})
        return SimpleNamespace(load_ms=0.0)

    monkeypatch.setattr(Model, "open", open_model)
    return calls


def test_load_resolves_and_opens(tmp_path: Path, opened: list[dict[str, Any]]) -> None:
    folder = tmp_path / "bundle"
    write_tiny_bundle(folder)
    quickdraft.load(folder, drafter="none", backend="reference", threads=2, kv_cache="int8")
    assert opened == [
        {
            "folder": folder,
            "manifest": tiny_manifest(),
            "backend": "reference",
            "drafter": "none",
            "threads": 2,
            "kv_cache": "int8",
            "name": str(folder),
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

    monkeypatch.setattr(resolving, "resolve", slow)
    assert quickdraft.load(tmp_path / "bundle").load_ms >= 50


@pytest.mark.parametrize("device", ["gpu", "", "CPU"])
def test_unknown_devices_are_refused_with_the_list(device: str, cache: Path) -> None:
    with pytest.raises(OptionError, match="available: auto, cpu"):
        quickdraft.load("smollm2-135m", device=device)
    assert not cache.exists()


def test_an_unknown_kv_type_is_refused_before_anything_is_fetched() -> None:
    with pytest.raises(OptionError, match="kv_cache is 'f8'; it must be one of f16, f32, int8"):
        quickdraft.load("smollm2-135m", kv_cache="f8")
