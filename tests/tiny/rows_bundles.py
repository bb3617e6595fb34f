"""Bundles of graphs that read a cache and give rows back, opened by the backend of their format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny.checkpoint import tiny_checkpoint
from tiny.turns import OPENED_BY

import quickdraft
from quickdraft.bundle import open_bundle
from quickdraft.export.pipeline import export_checkpoint
from quickdraft.registry import BACKENDS, lookup
from quickdraft.runtime.backends.base import Backend


def backend_of(form: str) -> str:
    """The backend of a format of the registry."""
    return OPENED_BY.get(form, form.partition("-")[0])


def write_bundle(form: str, folder: Path) -> Path:
    """A tiny model with a context of 96, in int8."""
    checkpoint = tiny_checkpoint("llama", max_position_embeddings=96)
    export_checkpoint(checkpoint, folder, weights="int8", formats=[form])
    return folder


def load(form: str, folder: Path, device: str | None = None, **changes: Any) -> Backend:
    """The backend of the only variant of a bundle, on one thread where that can be asked for.
    changes: of that variant."""
    manifest = open_bundle(folder).manifest
    variant = replace(manifest.roles["target"][0], **changes)
    kind = lookup("backend", BACKENDS, backend_of(form))
    options: dict[str, Any] = {} if device is None else {"device": device}
    if form != "reference":
        options["threads"] = 1
    opened: Backend = kind(folder, manifest.model, variant, **options)
    return opened


def answer(folder: Path, backend: str, drafter: str, options: Any = None) -> list[int]:
    """Greedy, with drafts of four tokens whatever they cost."""
    loaded = quickdraft.load(
        folder, backend=backend, drafter=drafter, drafter_options=options, store=False
    )
    with loaded as model:
        result = model.generate(
            "a b c a b c a", max_new_tokens=30, ignore_eos=True, num_draft_tokens=4
        )
        assert (result.guarantee, result.device) == ("same_distribution", "CPU")
        return list(result.token_ids)
