"""Where the tests marked `models` find the real models."""

from __future__ import annotations

import os
from pathlib import Path

FILES = {
    "smollm2-135m": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "qwen2.5-coder-1.5b": "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
}


def gguf_path(alias: str) -> Path:
    """The GGUF file of a built-in alias.

    From the folder in QUICKDRAFT_TEST_MODELS where that is set, else fetched as a user would.
    """
    folder = os.environ.get("QUICKDRAFT_TEST_MODELS")
    if folder:
        return Path(folder) / FILES[alias]
    from quickdraft.models.sources import fetch_checkpoint

    return fetch_checkpoint(alias)
