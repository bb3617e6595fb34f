"""The auxiliary model of KV prediction guesses what the target will say, as any small model does.

On request only: it is made to be early with the first token, not to be cheap with every token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from quickdraft.drafters import small_model
from quickdraft.drafters.base import DrafterContext, DrafterSource
from quickdraft.drafters.options import checked
from quickdraft.errors import OptionError


@dataclass(frozen=True)
class AuxiliaryOptions:
    """part: name of the auxiliary model in the bundle; may be left out where there is one. The
    others as in SmallModelOptions."""

    LIMITS: ClassVar[Mapping[str, tuple[Any, ...]]] = small_model.SmallModelOptions.LIMITS
    part: str = ""
    method: str = "auto"
    depth: int = 5
    width: int = 3
    nodes: int = 6
    stop_below: float = 0.3


def open_auxiliary(context: DrafterContext, options: Mapping[str, Any]) -> DrafterSource:
    """Load the auxiliary model. Every conversation has a cache of its own.

    Raises:
        OptionError: an option is unknown, missing or has a bad value, or parts cannot be loaded.
        InputError: the bundle has no such part.
    """
    chosen = checked(AuxiliaryOptions, "auxiliary", options)
    if context.open_head is None:
        raise OptionError(
            "drafter auxiliary is a part of its model's bundle, and there is none here"
        )
    chosen = dataclasses.replace(chosen, part=chosen.part or _only(context.auxiliaries))
    model = context.open_head(chosen.part)
    if model.features or "kind" in model.details:
        raise OptionError(
            f"part of drafter auxiliary is {chosen.part!r}, which is a trained draft; name an "
            "auxiliary model"
        )
    values = dataclasses.asdict(chosen)
    settings = small_model.SmallModelOptions(model=values.pop("part"), **values)
    source = small_model.drafts_of("auxiliary", model, settings)
    return dataclasses.replace(source, part=chosen.part)


def _only(names: Sequence[str]) -> str:
    """The auxiliary model that is meant where none is named.

    Raises:
        OptionError: there is none, or more than one.
    """
    if len(names) == 1:
        return names[0]
    if not names:
        raise OptionError(
            "drafter auxiliary drafts with the auxiliary model of a predictor, and this bundle has "
            "none for its backend; fit one with 'quickdraft train predictor' and export the model "
            "with it (--trained FILE)"
        )
    raise OptionError(
        f"the bundle has the auxiliary models {', '.join(names)}; say which one drafts with the "
        f"option part, such as auxiliary.part={names[0]}"
    )
