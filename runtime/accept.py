"""Acceptance rules: which drafted tokens would the target have said itself? Pure functions.

A rule walks a tree from its root. At each node it asks for the target's distribution after that
path, decides the next token, and goes on if the tree holds that token. Every rule decides one token
more than it accepts. A new rule is one function of the type `Rule` and one line in `RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from quickdraft.drafters.base import Proposals
from quickdraft.drafters.tree import Tree
from quickdraft.runtime.sampling import Distribution

NodeDistribution = Callable[[list[int]], Distribution]
"""The target's processed distribution after a path of nodes (root first). Asked only where needed;
penalties see the tokens of the path."""


@dataclass(frozen=True)
class Accepted:
    """path: nodes from the root to the last accepted one, rising. token: the token decided after
    them. The tokens decided by a step are those of path[1:], then `token`."""

    path: list[int]
    token: int


Rule = Callable[[Tree, NodeDistribution, np.random.Generator], Accepted]


def greedy(tree: Tree, distribution: NodeDistribution, rng: np.random.Generator) -> Accepted:
    """Accept a node iff it is the most likely token after its parent (rule V1)."""
    return _walk(tree, lambda path: distribution(path).mode())


def point_mass(tree: Tree, distribution: NodeDistribution, rng: np.random.Generator) -> Accepted:
    """Accept deterministic proposals with the target's probability of each (rule V3).

    V3 tries the siblings in turn, accepts x with probability p(x), and renormalises p without x on
    rejection. Drawing from p first and looking whether the tree holds the draw has the same
    outcome probabilities for any set of siblings, and takes one random number per decided token:
    so with a seed the answer is, token for token, the one plain decoding draws.
    """
    return _walk(tree, lambda path: distribution(path).draw(rng))


def _walk(tree: Tree, decide: Callable[[list[int]], int]) -> Accepted:
    path = [0]
    while True:
        token = decide(path)
        if path[-1] == len(tree) - 1:  # children come later than their parents
            return Accepted(path, token)
        child = next((c for c in tree.children(path[-1]) if tree.tokens[c] == token), None)
        if child is None:
            return Accepted(path, token)
        path.append(child)


RULES: Mapping[Proposals, Rule] = {"point_mass": point_mass}
"""The lossless rule for sampled decoding, by how proposals come about."""


def rule_for(proposals: Proposals, do_sample: bool) -> Rule:
    """The lossless rule for these proposals."""
    return RULES[proposals] if do_sample else greedy
