"""Heads that were trained on the target's last hidden state say the next few tokens at once.

Cai et al., Medusa (arXiv 2401.10774); the heads: quickdraft.export.heads.medusa. As no head knows
what the others say, what may follow at a depth is the same below every node of the one before. Ours
instead of a fixed tree: the likeliest paths by what the heads say now. Trees are chosen, not drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.base import (
    Draft,
    DrafterContext,
    DrafterSource,
    DraftSettings,
    HeadModel,
    Observation,
)
from quickdraft.drafters.best_first import Context, Successor, grow
from quickdraft.drafters.levels import GRADES, LEAST, grade
from quickdraft.drafters.options import checked
from quickdraft.drafters.parts import open_own
from quickdraft.drafters.tree import Tree

_NOT_YET = -1


@dataclass(frozen=True)
class MedusaOptions:
    """part: name of the heads in the bundle. width: most children of a node."""

    LIMITS: ClassVar[Mapping[str, tuple[Any, ...]]] = {"width": (1, 16)}
    part: str = "medusa"
    width: int = 6


def open_medusa(context: DrafterContext, options: Mapping[str, Any]) -> DrafterSource:
    """Load the heads, which remember nothing: conversations share them.

    Raises:
        OptionError: an option is unknown or has a bad value, or heads cannot be loaded.
        InputError: the bundle has no such part, or its target puts out no hidden states for it.
    """
    chosen = checked(MedusaOptions, "medusa", options)
    head = open_own(context, "medusa", chosen.part)
    (layer,) = head.details["hidden_states"]
    return DrafterSource(
        "medusa", GRADES, lambda: Medusa(head, chosen.width), hidden=(layer,), costly=True
    )


class Medusa:
    """The drafter of one conversation. Heads that fail raise BackendError from `propose`."""

    def __init__(self, head: HeadModel, width: int) -> None:
        self._head = head
        self._width = width
        self._heads: int = head.details["heads"]
        (self._layer,) = head.details["hidden_states"]
        self._cache = head.new_cache()
        self._last = 0
        self._state: NDArray[np.float32] | None = None

    def begin(self, tokens: Sequence[int], settings: DraftSettings) -> None:
        """Wait for a hidden state: that of the last token of a prompt comes with the first token of
        the answer."""
        del tokens, settings
        self._state = None

    def read(self, start: int, states: Mapping[int, NDArray[np.float32]]) -> None:
        """Only the last hidden state is of use."""

    def observe(self, observation: Observation) -> None:
        """Keep the hidden state that chose the last token."""
        self._last = observation.tokens[-1]
        self._state = observation.hidden_states[self._layer][-1:].copy()

    def propose(self, budget: int) -> Draft | None:
        """A tree of likely paths; None where the heads are not sure of anything.

        Raises:
            BackendError: the heads failed.
        """
        if budget < 1 or self._state is None:
            return None
        root = Tree.chain([self._last])
        said = self._head.step(root, self._cache, self._state, range(self._heads))
        sure = np.exp(np.minimum(said.log_probs[:, : self._width], 0.0)).tolist()
        levels: list[list[Successor]] = [
            [(token, likely, grade(likely)) for token, likely in zip(ids, row, strict=False)]
            for ids, row in zip(said.ids.tolist(), sure, strict=True)
        ]

        def successors(context: Context) -> Sequence[Successor]:
            depth = len(levels) - context.count(_NOT_YET)
            return levels[depth] if depth < len(levels) else ()

        # Every drafted token moves one of these out, which tells the depth of a node.
        context = (*(_NOT_YET for _ in levels), self._last)
        return grow(context, successors, budget, LEAST)
