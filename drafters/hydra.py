"""Heads that were trained on the target's last hidden state say the next tokens one by one.

Ankner et al., Hydra (arXiv 2402.05109); the heads: quickdraft.export.heads.hydra. Head k says what
follows a path of k tokens, knowing all of them. A tree grows level by level (as in EAGLE-2, arXiv
2406.16858), one head a level. Trees are chosen, not drawn.
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
from quickdraft.drafters.following import likelihoods
from quickdraft.drafters.levels import GRADES, LEAST, GrowingTree
from quickdraft.drafters.options import checked
from quickdraft.drafters.parts import open_own
from quickdraft.drafters.tree import Tree

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class HydraOptions:
    """part: what the names of the heads in the bundle begin with. width: most children of a node,
    and most nodes of a level that are followed further. stop_below: what follows a path is not
    asked where the path is less likely than this."""

    LIMITS: ClassVar[Mapping[str, tuple[Any, ...]]] = {"width": (1, 8), "stop_below": (0.0, 1.0)}
    part: str = "hydra"
    width: int = 3
    stop_below: float = 0.2


def open_hydra(context: DrafterContext, options: Mapping[str, Any]) -> DrafterSource:
    """Load the heads, which remember nothing: conversations share them.

    Raises:
        OptionError: an option is unknown or has a bad value, or heads cannot be loaded.
        InputError: the bundle has no such parts, or its target puts out no hidden states for them.
    """
    chosen = checked(HydraOptions, "hydra", options)
    heads = [open_own(context, "hydra", chosen.part, "-1")]
    count, (layer,) = heads[0].details["heads"], heads[0].details["hidden_states"]
    heads += [open_own(context, "hydra", chosen.part, f"-{k}") for k in range(2, count + 1)]
    return DrafterSource(
        "hydra", GRADES, lambda: Hydra(heads, layer, chosen), hidden=(layer,), costly=True
    )


class Hydra:
    """The drafter of one conversation. Heads that fail raise BackendError from `propose`."""

    def __init__(self, heads: Sequence[HeadModel], layer: int, options: HydraOptions) -> None:
        self._heads = [(head, head.new_cache()) for head in heads]
        self._layer = layer
        self._options = options
        self._last = 0
        self._state: Floats | None = None

    def begin(self, tokens: Sequence[int], settings: DraftSettings) -> None:
        """Wait for a hidden state: that of the last token of a prompt comes with the first token of
        the answer."""
        del tokens, settings
        self._state = None

    def read(self, start: int, states: Mapping[int, Floats]) -> None:
        """Only the last hidden state is of use."""

    def observe(self, observation: Observation) -> None:
        """Keep the hidden state that chose the last token."""
        self._last = observation.tokens[-1]
        self._state = observation.hidden_states[self._layer][-1].copy()

    def propose(self, budget: int) -> Draft | None:
        """A tree of likely paths; None where the heads are not sure of anything.

        Raises:
            BackendError: a head failed.
        """
        if budget < 1 or self._state is None:
            return None
        options, tree = self._options, GrowingTree(self._last)
        level, before = [0], {0: self._state}  # before: what a node's head reads besides its token
        for head, cache in self._heads[:budget]:
            start = len(tree.tokens)
            tokens = Tree.chain([tree.tokens[node] for node in level])  # no row looks at another
            features = np.stack([before[node] for node in level])
            said = head.step(tokens, cache, features, range(len(level)))
            sure = likelihoods(said, options.width)
            known = [np.concatenate(pair) for pair in zip(features, said.states, strict=True)]
            for row, node in enumerate(level):
                tree.add(node, zip(said.ids[row].tolist(), sure[row], strict=False), LEAST)
            read = dict(zip(level, known, strict=True))
            level = tree.best(start, options.width, budget, options.stop_below)
            if not level:
                break
            before = {node: read[tree.parent[node]] for node in level}
        return tree.draft(budget) if len(tree.tokens) > 1 else None
