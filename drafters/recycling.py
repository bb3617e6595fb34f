"""Token Recycling: what did the target nearly say after this token, the last time it was asked?

Luo et al. (arXiv 2408.08696). A matrix holds the target's most likely successors of every token,
as found at its latest verified occurrence, in accepted branches and in rejected ones alike; a draft
reads a fixed tree of candidate ranks off it. Ours: a tree of tens of nodes instead of eighty, since
rows cost time on a processor; rows nobody has seen yet hold the pairs of the conversation; and it
counts how often the best successor of a token stayed the same, which says best whether it will.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.base import (
    Draft,
    DrafterContext,
    DrafterSource,
    DraftSettings,
    Observation,
)
from quickdraft.drafters.conversation import common_prefix
from quickdraft.drafters.options import checked
from quickdraft.drafters.tree import Tree

STREAKS = 4
"""Classes of a row: how often in a row its best successor stayed the same, up to three times."""
RANK_RATES = (0.4, 0.12, 0.055, 0.03, 0.022, 0.02, 0.015, 0.015)
"""How often the target says the successor of each rank: gives the tree its shape."""


@dataclass(frozen=True)
class RecyclingOptions:
    """candidates: successors kept per token. max_nodes: largest draft."""

    LIMITS: ClassVar[Mapping[str, tuple[int, int]]] = {
        "candidates": (1, len(RANK_RATES)),
        "max_nodes": (1, 64),
    }
    candidates: int = 6
    max_nodes: int = 12


GRADES = (
    *(0.28, 0.11, 0.055, 0.03, 0.022, 0.02, 0.015, 0.015),
    *(0.5, 0.08, 0.03, 0.015, 0.01, 0.01, 0.01, 0.01),
    *(0.7, 0.05, 0.02, 0.01, 0.01, 0.01, 0.01, 0.01),
    *(0.8, 0.03, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01),
)
"""By class of the parent's row, and then by rank in it."""


def open_recycling(context: DrafterContext, options: Mapping[str, Any]) -> DrafterSource:
    """Open the drafter; all conversations share one matrix.

    Raises:
        OptionError: an option is unknown or has a bad value.
    """
    chosen = checked(RecyclingOptions, "recycling", options)
    matrix = Successors(context.vocab_size, chosen.candidates)
    return DrafterSource(
        "recycling",
        GRADES,
        lambda: Recycling(matrix, chosen.max_nodes),
        top=chosen.candidates,
        nbytes=lambda: matrix.nbytes,
    )


@dataclass(frozen=True)
class Shape:
    """A tree of ranks, level by level. levels: begin and end of one, its parents, its ranks."""

    parent: NDArray[np.int64]
    rank: NDArray[np.int64]
    levels: list[tuple[int, int, NDArray[np.int64], NDArray[np.int64]]]


@lru_cache(maxsize=128)
def shape_of(nodes: int, candidates: int) -> Shape:
    """The `nodes` likeliest paths of ranks."""
    paths: list[tuple[int, ...]] = [()]
    waiting: list[tuple[float, tuple[int, ...]]] = [(-RANK_RATES[0], (0,))]
    while len(paths) <= nodes:
        negative, path = heapq.heappop(waiting)
        paths.append(path)
        rank = path[-1]
        heapq.heappush(waiting, (negative * RANK_RATES[0], (*path, 0)))
        if rank + 1 < candidates:
            beside = negative / RANK_RATES[rank] * RANK_RATES[rank + 1]
            heapq.heappush(waiting, (beside, (*path[:-1], rank + 1)))
    paths.sort(key=len)
    at = {path: node for node, path in enumerate(paths)}
    parent = np.array([at[path[:-1]] if path else -1 for path in paths], np.int64)
    parent.flags.writeable = False  # it becomes the parents of many trees
    rank_of = np.array([path[-1] if path else 0 for path in paths], np.int64)
    ends = np.cumsum(np.bincount([len(path) for path in paths])).tolist()
    levels = [(a, b, parent[a:b], rank_of[a:b]) for a, b in pairwise(ends)]
    return Shape(parent, rank_of, levels)


class Successors:
    """The latest candidates after every token.

    ids: int32 [vocabulary + 1, candidates], best first; unknown ones are `vocabulary`, whose own
    row knows nothing. streak: uint8 [vocabulary + 1], how often in a row the best one was the same.
    """

    def __init__(self, vocab_size: int, candidates: int) -> None:
        self.unknown = vocab_size
        self.candidates = candidates
        self.ids = np.full((vocab_size + 1, candidates), vocab_size, np.int32)
        self.streak = np.zeros(vocab_size + 1, np.uint8)
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.ids.nbytes + self.streak.nbytes

    def update(
        self, tokens: NDArray[np.int64], top: NDArray[np.int64], accepted: NDArray[np.int64]
    ) -> None:
        """Put rows of top, int64 [n, t], behind tokens, int64 [n]. Of equal tokens the last one
        wins, or the last one of the accepted rows, which saw the true conversation."""
        count = min(top.shape[1], self.candidates)
        if len(tokens) == 1:  # a plain step, of which array operations would take too much
            self._update_row(int(tokens[0]), top[0, :count])
            return
        order = np.concatenate((np.arange(len(tokens)), accepted))
        rows = tokens[order]
        with self._lock:
            streak = np.minimum(self.streak[tokens] + 1, STREAKS - 1)
            streak *= self.ids[tokens, 0] == top[:, 0]
            self.streak[rows] = streak[order]
            self.ids[rows, :count] = top[order, :count]
            if count < self.candidates:
                self.ids[rows, count:] = self.unknown

    def _update_row(self, token: int, top: NDArray[np.int64]) -> None:
        with self._lock:
            row = self.ids[token]
            held = min(int(self.streak[token]) + 1, STREAKS - 1)
            self.streak[token] = held if row[0] == top[0] else 0
            row[: len(top)] = top
            row[len(top) :] = self.unknown

    def seed(self, tokens: Sequence[int]) -> None:
        """Let rows that know nothing hold the latest successor in a text."""
        first, second = np.array(tokens[:-1], np.int64), np.array(tokens[1:], np.int64)
        with self._lock:
            fresh = self.ids[first, 0] == self.unknown
            self.ids[first[fresh], 0] = second[fresh]

    def read(self, root: int, shape: Shape) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens of a tree of ranks below a root, and per node the streak of its parent's row."""
        tokens = np.empty(len(shape.parent), np.int64)
        tokens[0] = root
        with self._lock:
            for begin, end, parents, ranks in shape.levels:
                tokens[begin:end] = self.ids[tokens[parents], ranks]
            return tokens, self.streak[tokens[shape.parent]].astype(np.int64)


class Recycling:
    """The drafter of one conversation."""

    def __init__(self, matrix: Successors, max_nodes: int) -> None:
        self._matrix = matrix
        self._max_nodes = max_nodes
        self._tokens: list[int] = []

    def begin(self, tokens: Sequence[int], settings: DraftSettings) -> None:
        """Seed the matrix with what is new in the conversation."""
        shared = common_prefix(self._tokens, tokens)
        self._tokens = list(tokens)
        self._matrix.seed(tokens[max(shared - 1, 0) :])

    def propose(self, budget: int) -> Draft | None:
        """The candidates most likely to be said, as a tree of at most `max_nodes` nodes."""
        if budget < 1:
            return None
        matrix = self._matrix
        shape = shape_of(min(budget, self._max_nodes), matrix.candidates)
        tokens, streak = matrix.read(self._tokens[-1], shape)
        parent, grades = shape.parent, streak * len(RANK_RATES) + shape.rank
        known = tokens != matrix.unknown
        if not known.all():
            if not known[1:].any():
                return None
            parent = (np.cumsum(known) - 1)[parent[known]]
            tokens, grades = tokens[known], grades[known]
            parent[0] = -1
        return Draft(Tree(tokens, parent), grades.tolist())

    def observe(self, observation: Observation) -> None:
        """Keep what the target nearly said after every node, accepted or not."""
        self._tokens += observation.tokens
        if observation.top is None:
            return
        path = np.array(observation.path, np.int64)
        self._matrix.update(observation.tree.tokens, observation.top, path)
