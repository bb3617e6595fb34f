"""The drafts in the package: which model gets which, and what their cards say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quickdraft.export.trained import read_trained, write_trained
from quickdraft.models.aliases import ALIASES
from quickdraft.models.resolve import fingerprint
from quickdraft.models.shipped import FOLDER, shipped_drafts, with_shipped

LIMIT = 25_000_000
"""Bytes of all of them together: everyone who installs the package loads them."""


def draft(file: Path, kind: str, target: str) -> Path:
    tensors = {"bias": np.zeros(4, np.float32)}
    write_trained(file, kind=kind, target=target, settings={}, tensors=tensors, card={}, int8=False)
    return file


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"any bytes")
    return path


def test_a_model_gets_its_own(tmp_path: Path, checkpoint: Path) -> None:
    own = fingerprint(checkpoint)
    folder = tmp_path / "drafts"
    folder.mkdir()
    eagle = draft(folder / "b.safetensors", "eagle", own)
    medusa = draft(folder / "a.safetensors", "medusa", own)
    draft(folder / "c.safetensors", "eagle", "0" * 64)
    assert shipped_drafts(own, folder) == (medusa, eagle)
    assert shipped_drafts("1" * 64, folder) == ()
    assert with_shipped(checkpoint, (), folder) == (medusa, eagle)


def test_what_is_given_stands_for_what_is_shipped(tmp_path: Path, checkpoint: Path) -> None:
    own = fingerprint(checkpoint)
    folder = tmp_path / "drafts"
    folder.mkdir()
    draft(folder / "eagle.safetensors", "eagle", own)
    medusa = draft(folder / "medusa.safetensors", "medusa", own)
    given = draft(tmp_path / "mine.safetensors", "eagle", own)
    assert with_shipped(checkpoint, (given,), folder) == (given, medusa)


def test_they_are_for_built_in_models_and_small() -> None:
    files = sorted(FOLDER.glob("*.safetensors"))
    targets = {alias.sha256 for alias in ALIASES.values()}
    assert {read_trained(file).target for file in files} <= targets
    assert sum(file.stat().st_size for file in files) <= LIMIT


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.safetensors")), ids=lambda file: file.stem)
def test_each_has_a_card(file: Path) -> None:
    told = file.with_suffix(".md").read_text(encoding="utf-8")
    for fact in ("Data", "Recipe", "Time", "Acceptance", "Licence"):
        assert f"| {fact} |" in told
    assert read_trained(file).card["held_out"]["tokens_per_step"] > 1
