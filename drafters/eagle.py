"""A head that was trained on the target's hidden states grows a tree of what it will say.

The head: quickdraft.export.heads.eagle; what it reads, and the tree: quickdraft.drafters.following.
For tokens that are only drafted it reads its own states.
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
class EagleOptions(FollowOptions):
    """See FollowOptions."""

    part: str = "eagle"
    depth: int = 5


def open_eagle(context: DrafterContext, options: Mapping[str, Any]) -> DrafterSource:
    """Load the head.

    Raises:
        OptionError, InputError: see open_following.
    """
    return open_following(("eagle", EagleOptions, Eagle), context, options)


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
