"""What every emitter is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quickdraft.export.quantize import WeightFormat
from quickdraft.types import ModelSpec


@dataclass(frozen=True)
class EmitRequest:
    """A model as code, its facts, and where and how to write it.

    build: called with an Ops, describes one step. folder: the bundle being written; an emitter
    makes one subfolder. hidden_states: streams to offer, as in Ops.hidden_state. top: how many of
    a row's largest logits the hotpath flavour puts out.

    An emitter is a function of a request that writes files and returns their manifest Variant.
    """

    build: Callable[[Any], None]
    spec: ModelSpec
    folder: Path
    fmt: WeightFormat
    hidden_states: tuple[int, ...] = ()
    top: int = 64
