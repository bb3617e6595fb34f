"""These tests never see the cache of the person who runs them."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of quickdraft and of the hub, in the environment of the test and its
    children."""
    root = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("QUICKDRAFT_CACHE", str(root / "quickdraft"))
    monkeypatch.setenv("HF_HOME", str(root / "hub"))
    return root / "quickdraft"
