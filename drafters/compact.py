"""A compact draft, trained for its target and kept in its bundle, guesses what the target will say.

The model: quickdraft.export.heads.compact. It drafts as any small model does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from quickdraft.drafters import small_model
from quickdraft.drafters.base import DrafterContext, DrafterSource
from quickdraft.drafters.options import checked
from quickdraft.drafters.parts import open_own


@dataclass(frozen=True)
class CompactOptions:
    """part: name of the draft in the bundle. The others as in SmallModelOptions; a step of this
    model costs next to nothing, so it drafts further."""

    LIMITS: ClassVar[Mapping[str, tuple[Any, ...]]] = small_model.SmallModelOptions.LIMITS
    part: str = "compact"
    method: str = "auto"
    depth: int = 8
    width: int = 3
    nodes: int = 6
    stop_below: float = 0.2


def open_compact(context: DrafterContext, options: Mapping[str, Any]) -> DrafterSource:
    """Load the draft. Every conversation has a cache of its own.

    Raises:
        OptionError: an option is unknown or has a bad value, or parts cannot be loaded.
        InputError: the bundle has no such part.
    """
    chosen = checked(CompactOptions, "compact", options)
    model = open_own(context, "compact", chosen.part)
    values = dataclasses.asdict(chosen)
    settings = small_model.SmallModelOptions(model=values.pop("part"), **values)
    return small_model.drafts_of("compact", model, settings)
