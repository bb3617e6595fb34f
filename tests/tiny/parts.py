"""Requests to emitters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from quickdraft.export.emitters.base import EmitRequest, Part
from quickdraft.export.quantize import WeightFormat
from quickdraft.types import ModelSpec


def target_request(
    build: Callable[[Any], None],
    spec: ModelSpec,
    folder: Path,
    fmt: WeightFormat,
    hidden_states: tuple[int, ...] = (),
) -> EmitRequest:
    """A bundle of a target and nothing else."""
    return EmitRequest(folder, fmt, (Part("target", "model", build, spec, hidden_states),))
