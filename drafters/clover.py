"""A cell that was trained on the target's hidden states runs on from token to token.

Block and cell: quickdraft.export.heads.clover; what the block reads, and the tree:
quickdraft.drafters.following. A node's row reads the cell's state of the node before it, and the
tokens of its path; nothing of that is kept (Xiao et al., Clover, arXiv 2405.00263).
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
from quickdraft.drafters.tree import Tree


@dataclass(frozen=True)
class CloverOptions(FollowOptions):
    """See FollowOptions."""

    part: str = "clover"
    depth: int = 4


def open_clover(context: DrafterContext, options: Mapping[str, Any]) -> DrafterSource:
    """Load block and cell.

    Raises:
        OptionError, InputError: see open_following.
    """
    return open_following(("clover", CloverOptions, Clover), context, options, ("-1", "-2"))


class Clover(Following):
    """The drafter of one conversation."""

    def __init__(self, block: HeadModel, cell: HeadModel, options: FollowOptions) -> None:
        super().__init__(block, options)
        self._cell, self._nothing = cell, cell.new_cache()
        self._states: dict[int, Floats] = {}  # what follows a node is made of these

    def features(self, rows: Sequence[tuple[int, Floats]]) -> Floats:
        """The target's last stream."""
        return np.stack([states for _, states in rows])

    def first(self, tree: GrowingTree) -> HeadOutput:
        """The cell after the last decided token, from the state of the block."""
        said = self._cell.step(Tree.chain(tree.tokens), self._nothing, self.states[None], [0])
        self._states = {-1: self.states.copy(), 0: said.states[0].copy()}
        return said

    def ask(self, tree: GrowingTree, level: Sequence[int]) -> HeadOutput:
        """Only the paths that lead to the nodes of the level are run, from the root on, whose token
        is seen."""
        kept, staged = tree.subtree(level, root=True)
        rows = [kept.index(node) for node in level]
        features = np.stack([self._states[tree.parent[node]] for node in kept])
        said = self._cell.step(staged, self._nothing, features, rows)
        for node, row in zip(level, rows, strict=True):
            self._states[node] = said.states[row].copy()
        return said
