"""Bundles of tiny random models that really run, for tests of everything above the engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from tiny.checkpoint import tiny_checkpoint

from quickdraft.export import pipeline
from quickdraft.manifest import Manifest


def write_tiny_model(
    folder: Path,
    family: str = "llama",
    formats: tuple[str, ...] = ("onnx", "reference"),
    weights: str = "fp32",
    chat: bool = True,
    **config: Any,
) -> Manifest:
    """Export `tiny_checkpoint(family, **config)` to `folder`; chat: with its chat template."""
    checkpoint = tiny_checkpoint(family, **config)
    if not chat:
        checkpoint = replace(
            checkpoint, tokenizer=replace(checkpoint.tokenizer, chat_template=None)
        )
    with mock.patch.object(pipeline, "read_checkpoint", return_value=checkpoint):
        return pipeline.export_model(folder, folder, weights=weights, formats=formats)
