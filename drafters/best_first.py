"""Grow a tree from estimates: the likeliest path first."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import numpy as np

from quickdraft.drafters.base import Draft
from quickdraft.drafters.tree import Tree

Context = tuple[int, ...]
Successor = tuple[int, float, int]
"""A token that may follow, its estimated probability, its grade."""
Successors = Callable[[Context], Sequence[Successor]]
"""What may follow a context, likeliest first."""


def grow(context: Context, successors: Successors, budget: int, floor: float) -> Draft | None:
    """The likeliest nodes below a root, the last token of `context`, at most `budget` of them.

    A path is left where its probability, the product of the estimates of its nodes, is below
    `floor`. Every node sees the context moved on by one token. None if there is no node.
    """
    tokens, parents, grades, contexts = [context[-1]], [-1], [0], [context]
    # Minus the probability, the number among the candidates (so that of equals the first one wins),
    # the parent, token and grade.
    waiting: list[tuple[float, int, int, int, int]] = []
    node, likely, count = 0, 1.0, 0
    while True:
        for token, probability, grade in successors(contexts[node]):
            path = likely * probability
            if path < floor:
                break
            count += 1
            heapq.heappush(waiting, (-path, count, node, token, grade))
        if not waiting or len(tokens) > budget:
            break
        negative, _, parent, token, grade = heapq.heappop(waiting)
        node, likely = len(tokens), -negative
        tokens.append(token)
        parents.append(parent)
        grades.append(grade)
        contexts.append((*contexts[parent][1:], token))
    if len(tokens) == 1:
        return None
    return Draft(Tree(np.array(tokens, np.int64), np.array(parents, np.int64)), grades)
