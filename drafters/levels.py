"""A tree of likely paths that grows level by level.

Li et al., EAGLE-2 (arXiv 2406.16858): the likeliest nodes of a level are followed further, and in
the end the likeliest of all nodes are proposed. Parents are likelier than their children, so every
such choice is a tree.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

import numpy as np

from quickdraft.drafters.base import Draft
from quickdraft.drafters.tree import Tree

SURE = (0.05, 0.15, 0.3, 0.45, 0.6, 0.75, 0.85, 0.92, 0.97)
"""Where the grades of nodes part, by the probability that a model gives them."""
GRADES = (0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.78, 0.86, 0.93, 0.97)
"""How often nodes that a trained head proposes are accepted, by grade: to start from."""
LEAST = 0.02
"""A path that is less likely is not worth a look."""


def grade(probability: float) -> int:
    """0 to len(SURE)."""
    return bisect_right(SURE, probability)


class GrowingTree:
    """Its nodes so far, the root first. paths: the probability of the path to each node."""

    def __init__(self, root: int) -> None:
        self.tokens, self.parent, self.paths, self.grades = [root], [-1], [1.0], [0]

    def add(self, node: int, children: Iterable[tuple[int, float]], least: float) -> None:
        """Children of a node with their probabilities, likeliest first, as far as the path to them
        is not less likely than `least`."""
        for token, probability in children:
            path = self.paths[node] * probability
            if path < least:
                break
            self.tokens.append(token)
            self.parent.append(node)
            self.paths.append(path)
            self.grades.append(grade(probability))

    def best(self, start: int, width: int, budget: int, floor: float) -> list[int]:
        """Of the nodes from `start` on those to follow, likeliest first: at most `width`, not less
        likely than `floor`, and among the `budget` likeliest of all: below others there is none
        that will be."""
        paths = self.paths
        worst = sorted(paths, reverse=True)[budget] if len(paths) > budget else 0.0
        new = sorted(range(start, len(paths)), key=lambda node: -paths[node])[:width]
        return [node for node in new if paths[node] > worst and paths[node] >= floor]

    def path(self, node: int) -> list[int]:
        """The nodes below the root up to this one."""
        nodes = []
        while node > 0:
            nodes.append(node)
            node = self.parent[node]
        return nodes[::-1]

    def subtree(self, nodes: Iterable[int], *, root: bool = False) -> tuple[list[int], Tree]:
        """All nodes below the root that lead to these, ascending, and the tree that they make;
        root: with the root."""
        kept = sorted({node for end in nodes for node in self.path(end)} | ({0} if root else set()))
        return kept, self._tree(kept)

    def draft(self, budget: int) -> Draft:
        """The likeliest nodes, at most `budget` below the root."""
        paths = self.paths
        kept = sorted(sorted(range(len(paths)), key=lambda node: -paths[node])[: budget + 1])
        return Draft(self._tree(kept), [self.grades[node] for node in kept])

    def _tree(self, kept: list[int]) -> Tree:
        new = {node: i for i, node in enumerate(kept)}
        return Tree(
            np.array([self.tokens[node] for node in kept], np.int64),
            np.array([new.get(self.parent[node], -1) for node in kept], np.int64),
        )
