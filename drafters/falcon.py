"""A head that was trained on the target's hidden states says several tokens a step.

The head: quickdraft.export.heads.falcon; what it reads: quickdraft.drafters.following. Below a node
that is asked, what may follow at a depth is the same for every node of the one before, as none of
them is told what the others are; below the last depth of a block, the likeliest nodes are asked in
turn. So a tree takes a step for every block (Gao et al., Falcon, arXiv 2412.12639).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quickdraft.drafters import eagle
from quickdraft.drafters.base import Draft, DrafterContext, DrafterSource, HeadModel, HeadOutput
from quickdraft.drafters.following import (
    Floats,
    FollowOptions,
    likelihoods,
    open_following,
)
from quickdraft.drafters.levels import LEAST, GrowingTree


@dataclass(frozen=True)
class FalconOptions(FollowOptions):
    """See FollowOptions."""

    part: str = "falcon"
    depth: int = 6
    stop_below: float = 0.2


def open_falcon(context: DrafterContext, options: Mapping[str, Any]) -> DrafterSource:
    """Load the head.

    Raises:
        OptionError, InputError: see open_following.
    """
    return open_following(("falcon", FalconOptions, Falcon), context, options)


class Falcon(eagle.Eagle):
    """The drafter of one conversation.

    State k of a node that was asked stands for the node k - 1 levels below it."""

    def __init__(self, head: HeadModel, options: FollowOptions) -> None:
        super().__init__(head, options)
        self._block: int = head.details["block"]

    def asked(self, count: int) -> Sequence[int]:
        """The whole block after the last row."""
        return range(count - 1, self._block * count, count)

    def grow(self, budget: int) -> Draft:
        """The `budget` likeliest paths, in one step for every block of levels."""
        options, tree = self._options, GrowingTree(self.tokens[-1])
        depth, level = min(options.depth, budget), [0]
        said = self.first(tree)
        blocks = {0: self.states}
        for below in range(depth, 0, -self._block):
            start = self._add(tree, level, said, blocks, min(below, self._block))
            level = tree.best(start, options.width, budget, options.stop_below)
            if not level or below <= self._block:
                break
            said = self.ask(tree, level)
            blocks = {node: self._states[node] for node in level}
        return tree.draft(budget)

    def ask(self, tree: GrowingTree, level: Sequence[int]) -> HeadOutput:
        """The whole blocks after the nodes of a level, one depth after another. Only the paths that
        lead to these are run."""
        kept, staged = tree.subtree(level)
        rows = [kept.index(node) for node in level]
        features = self.own_features(tree, kept)
        wanted = [depth * len(kept) + row for depth in range(self._block) for row in rows]
        said = self._head.step(staged, self.cache, features, wanted)
        for node, row in zip(level, rows, strict=True):
            self._states[node] = said.states[row].copy()
        return said

    def _add(
        self,
        tree: GrowingTree,
        level: Sequence[int],
        said: HeadOutput,
        blocks: Mapping[int, Floats],
        depth: int,
    ) -> int:
        """Add the levels of the blocks after the nodes of a level, at most `depth`; where the last
        one begins. blocks: the states of each of them."""
        options = self._options
        sure = likelihoods(said, options.width)
        states = {node: np.split(block, self._block) for node, block in blocks.items()}
        ends: dict[int, list[int]] = {node: [node] for node in level}
        start = len(tree.tokens)
        for number in range(depth):
            start = len(tree.tokens)
            for at, node in enumerate(level):
                row = number * len(level) + at
                children = list(zip(said.ids[row].tolist(), sure[row], strict=False))
                before, ends[node] = ends[node], []
                for parent in before:
                    self._states[parent] = states[node][number]
                    first = len(tree.tokens)
                    tree.add(parent, children, LEAST)
                    ends[node] += range(first, len(tree.tokens))
        return start
