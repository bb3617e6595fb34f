"""Predictors whose auxiliary is the target itself, so that what they predict is exact."""

from __future__ import annotations

import functools
from typing import Any

from tiny.hotpath_models import exported

from quickdraft.export.emitters.base import EmitRequest, Part
from quickdraft.export.emitters.hotpath import emit_hotpath
from quickdraft.export.ops import Attention
from quickdraft.manifest import Variant


class Echo:
    """Ops that turn a model into a predictor of its own cache: what a layer keeps is staged too,
    and there are no logits."""

    def __init__(self, ops: Any) -> None:
        self._ops = ops

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def attend(self, q: Any, k: Any, v: Any, attention: Attention) -> Any:
        """Stage, then attend."""
        self._ops.stage(k, v, attention)
        return self._ops.attend(q, k, v, attention)

    def output_rows(self) -> None:
        """A predictor has none."""

    def take_rows(self, x: Any, rows: None) -> Any:
        """All."""
        return x

    def logits(self, x: Any) -> None:
        """A predictor has none."""


@functools.cache
def with_predictor(name: str, form: str) -> tuple[EmitRequest, Variant]:
    """The model of `exported` beside its predictor, in a folder of their own; the latter's
    variant."""
    alone, _ = exported(name, form)
    target = alone.parts[0]
    part = Part(
        role="predictor",
        name="echo",
        build=lambda ops: target.build(Echo(ops)),
        spec=target.spec,
        target=target.spec,
    )
    request = EmitRequest(alone.folder / "both", alone.fmt, (target, part))
    request.folder.mkdir()
    return request, emit_hotpath(request)[1]
