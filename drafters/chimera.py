"""A head that was trained on the target's hidden states drafts from the last three tokens.

The head: quickdraft.export.heads.chimera; what it reads, and the tree:
quickdraft.drafters.following. A node's row reads its token, the two before it, and the target's
last state; nothing of the head's own goes from row to row but keys and values (Zeng et al.,
Chimera, arXiv 2402.15758).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from quickdraft.drafters.base import DrafterContext, DrafterSource, HeadModel, HeadOutput
from quickdraft.drafters.following import (
    FOLLOW_LIMITS,
    Floats,
    Following,
    FollowOptions,
    following_source,
)
from quickdraft.drafters.levels import GrowingTree
from quickdraft.drafters.options import checked
from quickdraft.drafters.parts import open_own


@dataclass(frozen=True)
class ChimeraOptions:
    """part: name of the head in the bundle. depth: of the deepest node. width: most children of a
    node, and most nodes of a level that are followed further. stop_below: what follows a path is
    not asked where the path is less likely than this."""

    LIMITS: ClassVar[Mapping[str, tuple[Any, ...]]] = FOLLOW_LIMITS
    part: str = "chimera"
    depth: int = 4
    width: int = 3
    stop_below: float = 0.25


def open_chimera(context: DrafterContext, options: Mapping[str, Any]) -> DrafterSource:
    """Load the head. Every conversation has a cache of its own.

    Raises:
        OptionError: an option is unknown or has a bad value, or heads cannot be loaded.
        InputError: the bundle has no such head, or its target puts out no hidden states for it.
    """
    chosen = checked(ChimeraOptions, "chimera", options)
    head = open_own(context, "chimera", chosen.part)
    return following_source("chimera", head, lambda: Chimera(head, chosen))


class Chimera(Following):
    """The drafter of one conversation."""

    def __init__(self, head: HeadModel, options: FollowOptions) -> None:
        super().__init__(head, options)
        self._hidden = head.features // 3
        self._last: tuple[int, Floats, Floats] | None = None  # the last row: number, both streams
        self._embeddings: dict[int, Floats] = {}  # by node; -1: the token before the root

    def features(self, rows: Sequence[tuple[int, Floats]]) -> Floats:
        """The target's last state, and the embeddings of its token and of the one before, which is
        nothing where that is not known."""
        features = np.zeros((len(rows), 3 * self._hidden), np.float32)
        for made, (number, streams) in zip(features, rows, strict=True):
            embedding, state = np.split(streams, 2)
            made[: self._hidden], made[self._hidden : 2 * self._hidden] = state, embedding
            if self._last is not None and self._last[0] == number - 1:
                made[2 * self._hidden :] = self._last[1]
            self._last = number, embedding, state
        return features

    def first(self, tree: GrowingTree) -> HeadOutput:
        """What the head said after the last row."""
        del tree
        assert self.root is not None  # `propose` saw to it  # noqa: S101
        assert self._last is not None  # noqa: S101
        self._embeddings = {-1: self._last[1], 0: self.states}
        return self.root

    def ask(self, tree: GrowingTree, level: Sequence[int]) -> HeadOutput:
        """Only the paths that lead to the nodes of the level are run."""
        assert self._last is not None  # as in `first`  # noqa: S101
        kept, staged = tree.subtree(level)
        features = np.zeros((len(kept), 3 * self._hidden), np.float32)
        for made, node in zip(features, kept, strict=True):
            parent = tree.parent[node]
            made[: self._hidden] = self._last[2]
            made[self._hidden : 2 * self._hidden] = self._embeddings[parent]
            made[2 * self._hidden :] = self._embeddings[tree.parent[parent]]
        said = self._head.step(staged, self.cache, features, [kept.index(node) for node in level])
        for row, node in enumerate(kept):
            self._embeddings[node] = said.states[row].copy()
        return said
