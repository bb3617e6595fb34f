"""A tiny bundle and checkpoint to run commands on, and standard input that holds nothing."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from tiny.gguf_models import tiny_llama
from tiny.models import write_tiny_model


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 45,216 parameters with a context of 100,000 tokens."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    write_tiny_model(folder, max_position_embeddings=100_000)
    return folder


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    """A GGUF file of a random llama with a context of 64 tokens."""
    file = tmp_path / "small.gguf"
    file.write_bytes(tiny_llama().to_bytes())
    return file


@pytest.fixture(autouse=True)
def _empty_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
