"""A head that was trained on the target's hidden states grows a tree of what it will say.

The head: quickdraft.export.heads.eagle; what it reads, and the tree: quickdraft.drafters.following.
For tokens that are only drafted it reads its own states.
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
class EagleOptions:
    """part: name of the head in the bundle. depth: of the deepest node. width: most children of a
    node, and most nodes of a level that are followed further. stop_below: what follows a path is
    not asked where the path is less likely than this."""

    LIMITS: ClassVar[Mapping[str, tuple[Any, ...]]] = FOLLOW_LIMITS
    part: str = "eagle"
    depth: int = 5
    width: int = 3
    stop_below: float = 0.25


def open_eagle(context: DrafterContext, options: Mapping[str, Any]) -> DrafterSource:
    """Load the head. Every conversation has a cache of its own.

    Raises:
        OptionError: an option is unknown or has a bad value, or heads cannot be loaded.
        InputError: the bundle has no such head, or its target puts out no hidden states for it.
    """
    chosen = checked(EagleOptions, "eagle", options)
    head = open_own(context, "eagle", chosen.part)
    return following_source("eagle", head, lambda: Eagle(head, chosen))


class Eagle(Following):
    """The drafter of one conversation.

    A node's row reads the head's own state of the node before it instead of the target's."""

    def __init__(self, head: HeadModel, options: FollowOptions) -> None:
        super().__init__(head, options)
        # The features are the streams of the target, then a state of its own.
        self._told = head.features * len(self._layers) // (len(self._layers) + 1)
        self._states: dict[int, Floats] = {}  # by node of the tree

    def features(self, rows: Sequence[tuple[int, Floats]]) -> Floats:
        """The target's states, and none of its own."""
        features = np.zeros((len(rows), self._head.features), np.float32)
        features[:, : self._told] = [states for _, states in rows]
        return features

    def first(self, tree: GrowingTree) -> HeadOutput:
        """What the head said after the last row."""
        del tree
        assert self.root is not None  # `propose` saw to it  # noqa: S101
        self._states = {0: self.states}
        return self.root

    def ask(self, tree: GrowingTree, level: Sequence[int]) -> HeadOutput:
        """Only the paths that lead to the nodes of the level are run."""
        kept, staged = tree.subtree(level)
        rows = [kept.index(node) for node in level]
        said = self._head.step(staged, self.cache, self.own_features(tree, kept), rows)
        for node, row in zip(level, rows, strict=True):
            self._states[node] = said.states[row].copy()
        return said

    def own_features(self, tree: GrowingTree, nodes: Sequence[int]) -> Floats:
        """float32 [nodes, features of the head], of drafted nodes."""
        features = np.zeros((len(nodes), self._head.features), np.float32)
        features[:, self._told :] = [self._states[tree.parent[node]] for node in nodes]
        return features
