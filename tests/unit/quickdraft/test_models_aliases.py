"""The built-in table of models: consistent, and what it names can be fetched."""

from __future__ import annotations

import pytest

from quickdraft.models.aliases import ALIASES
from quickdraft.models.sources import fetch_checkpoint


def test_the_built_in_table_is_consistent() -> None:
    for name, alias in ALIASES.items():
        assert name == alias.name == name.lower()
        packages = {part.requirement for part in alias.parts}
        assert len(packages) == (1 if alias.folder else len(alias.parts))
        assert len({part.member for part in alias.parts}) == len(alias.parts)
        assert all(len(text) == 64 for text in (alias.sha256, *(p.sha256 for p in alias.parts)))
        assert "==" in alias.parts[0].requirement
    assert ALIASES["smollm2-135m"].size == 98_362_432
    assert ALIASES["qwen2.5-coder-1.5b"].size == 1_117_320_768
    assert len(ALIASES["qwen2.5-coder-1.5b"].parts) == 22


@pytest.mark.models
@pytest.mark.timeout(600)
def test_the_small_built_in_model_really_arrives() -> None:
    path = fetch_checkpoint("smollm2-135m")
    assert path.stat().st_size == ALIASES["smollm2-135m"].size
    with open(path, "rb") as file:
        assert file.read(4) == b"GGUF"
