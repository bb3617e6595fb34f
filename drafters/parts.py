"""Trained parts of the target's bundle, found for the drafters of their kind."""

from __future__ import annotations

from quickdraft.drafters.base import DrafterContext, HeadModel
from quickdraft.errors import OptionError


def open_own(context: DrafterContext, kind: str, part: str, suffix: str = "") -> HeadModel:
    """The part for the drafter `kind`. part: its name in the bundle, or what the names of its
    several parts begin with; suffix: the rest of the name.

    Raises:
        OptionError: heads cannot be loaded here, or the part is of another kind.
        InputError: the bundle has no such part, or its target puts out no hidden states for it.
    """
    if context.open_head is None:
        raise OptionError(f"drafter {kind} is a part of its model's bundle, and there is none here")
    head = context.open_head(part + suffix)
    if head.details.get("kind") != kind:
        raise OptionError(
            f"part of drafter {kind} is {part!r}, which is nothing of this kind; name one that is"
        )
    return head
