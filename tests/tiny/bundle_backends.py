"""Backends whose models grow trees over several steps, and one bundle that all of them open."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny.models import write_tiny_model

from quickdraft.runtime.native import library_path

GROWING = [
    "reference",
    "onnxruntime",
    pytest.param(
        "hotpath",
        marks=[
            pytest.mark.native,
            pytest.mark.skipif(library_path() is None, reason="needs the native library"),
        ],
    ),
]


def write_for_growing(folder: Path) -> Path:
    """A tiny model in the formats of GROWING; gives the folder."""
    formats = ("onnx", "reference", *(("hotpath",) if library_path() is not None else ()))
    write_tiny_model(folder, formats=formats)
    return folder
