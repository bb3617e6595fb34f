"""Bundles of tiny models with predictors that need no training: one is right, one is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from tiny.hotpath_parts import Echo
from tiny.models import write_tiny_model

from quickdraft.export import parts, pipeline
from quickdraft.export.architectures.decoder import build_decoder
from quickdraft.export.checkpoints.base import Checkpoint
from quickdraft.export.emitters.base import Part
from quickdraft.export.ops import Attention
from quickdraft.export.trained import Target
from quickdraft.manifest import Manifest


class Confused(Echo):
    """Predicts keys where values belong, and the other way round."""

    def attend(self, q: Any, k: Any, v: Any, attention: Attention) -> Any:
        """Stage, then attend."""
        self._ops.stage(v, k, attention)
        return self._ops.attend(q, k, v, attention)


def _attach(path: Path, checkpoint: Checkpoint, target: Target) -> Sequence[Part]:
    spec = target.spec.model_spec()

    def part(name: str, kind: type[Echo], **details: Any) -> Part:
        return Part(
            role="predictor",
            name=name,
            build=lambda ops: build_decoder(kind(ops), target.spec, target.weights),
            spec=spec,
            target=spec,
            details={"keep": 1.0, "layers": [0, 1], **details},
        )

    return part("right", Echo, method="none"), part("wrong", Confused, exact_first=2)


def write_predicted_model(
    folder: Path, formats: tuple[str, ...] = ("hotpath",), **config: Any
) -> Manifest:
    """A tiny model with the predictors `right` and `wrong`; the target runs the first two tokens
    of what the latter predicts."""
    write = pipeline.export_model

    def with_parts(*args: Any, **options: Any) -> Manifest:
        return write(*args, **options, trained=[Path("made up")])

    with (
        mock.patch.object(parts, "_attach", _attach),
        mock.patch.object(pipeline, "hash_files", return_value="made up"),
        mock.patch.object(pipeline, "export_model", with_parts),
    ):
        return write_tiny_model(folder, formats=formats, **config)
