"""A head that was trained on the target's hidden states drafts from the last three tokens.

The head: quickdraft.export.heads.chimera; what it reads, and the tree:
quickdraft.drafters.following. A node's row reads its token, the two before it, and the target's
last state; nothing of the head's own goes from row to row but keys and values (Zeng et al.,
Chimera, arXiv 2402.15758).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quickdraft.drafters.base import DrafterContext, DrafterSource, HeadModel, HeadOutput
from quickdraft.drafters.following import (
    Floats,
    Following,
    FollowOptions,
    open_following,
)
from quickdraft.drafters.levels import GrowingTree


@dataclass(frozen=True)
class ChimeraOptions(FollowOptions):
    """See FollowOptions."""

    part: str = "chimera"
    depth: int = 4


def open_chimera(context: DrafterContext, options: Mapping[str, Any]) -> DrafterSource:
    """Load the head.

    Raises:
        OptionError, InputError: see open_following.
    """
    return open_following(("chimera", ChimeraOptions, Chimera), context, options)


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
