"""How the next tokens of all beams are computed in one step.

Beams share one cache. What all agree on is committed; the rest are branches of one tree that stand
on it. A backend that lets trees grow (GrowingBackend) keeps the rows of a tree from one step to the
next: a step computes one row per beam, and choosing other beams moves the few rows that stay, never
a cache. Another one computes the whole tree again, as long as that is small; after that, and where
there are no trees, every beam has a cache of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.conversation import common_prefix
from quickdraft.drafters.tree import Tree
from quickdraft.kvcache.base import KvCache
from quickdraft.runtime.backends.base import (
    Backend,
    CancelToken,
    GrowingBackend,
    StepOutput,
    TopTokens,
)
from quickdraft.runtime.beams.search import Move

MOST_ROWS = 48
"""Of a tree that is computed anew in every step; beyond, one step per beam costs less."""


class BeamRows(Protocol):
    """Keys and values of all beams. computed: rows so far. kind: how they are held."""

    computed: int
    kind: str

    def extend(self, moves: Sequence[Move], full_logits: bool = True) -> StepOutput:
        """Let beams go on; the others are dropped. Returns a row for each move, in order."""


class TreeRows:
    """Beams as branches over one cache."""

    kind = "tree"

    def __init__(self, backend: Backend, cache: KvCache, cancel: CancelToken | None) -> None:
        """cache: with the prompt committed, which is where the first beam ends."""
        self._backend, self._cache, self._cancel = backend, cache, cancel
        self._growing = backend if isinstance(backend, GrowingBackend) else None
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._leaves = [-1]
        self.committed: list[int] = []
        self.computed = 0

    def _path(self, node: int) -> list[int]:
        path: list[int] = []
        while node >= 0:
            path.append(node)
            node = self._parents[node]
        return path[::-1]

    def _prune(self, leaves: Sequence[int]) -> tuple[list[int], int]:
        """Nodes that some leaf stands on, in order, and how many of the first all stand on."""
        paths = [self._path(leaf) for leaf in leaves]
        kept = sorted({node for path in paths for node in path})
        # What the first and the last in order share, all share.
        return kept, common_prefix(min(paths), max(paths))

    def too_long(self, moves: Sequence[Move]) -> bool:
        """Whether the tree after these moves costs more than a step for each beam."""
        if self._growing is not None:
            return False
        kept, shared = self._prune([self._leaves[move.row] for move in moves])
        return len(kept) - shared + len(moves) > MOST_ROWS

    def extend(self, moves: Sequence[Move], full_logits: bool = True) -> StepOutput:
        """See BeamRows.extend."""
        ends = [self._leaves[move.row] for move in moves]
        kept, shared = self._prune(ends)
        growing = self._growing
        if growing is None:
            self._cache.commit(kept[:shared])
        else:
            self._cache.keep(kept, shared)
        self.committed += [self._tokens[node] for node in kept[:shared]]
        number = {node: at for at, node in enumerate(kept[shared:])}
        self._tokens = [self._tokens[node] for node in number] + [move.token for move in moves]
        parents = [self._parents[node] for node in number] + ends
        self._parents = [number.get(parent, -1) for parent in parents]
        self._leaves = list(range(len(number), len(self._tokens)))
        tree = Tree(np.array(self._tokens, np.int64), np.array(self._parents, np.int64))
        if growing is not None:
            self.computed += len(moves)
            return growing.grow(
                tree, self._cache, len(number), self._cancel, full_logits=full_logits
            )
        self.computed += len(tree)
        wanted = np.array(self._leaves, np.int64)
        return self._backend.step(tree, self._cache, wanted, self._cancel, full_logits=full_logits)

    def forked(self) -> CacheRows:
        """The same beams, each with a cache of its own."""
        caches = []
        for leaf in self._leaves:
            path = self._path(leaf)
            cache = self._cache.fork()
            if path:
                chain = Tree.chain([self._tokens[node] for node in path])
                last = np.array([len(path) - 1], np.int64)
                self._backend.step(chain, cache, last, self._cancel, full_logits=False)
                cache.commit(range(len(path)))
                self.computed += len(path)
            caches.append(cache)
        return CacheRows(self._backend, caches, self._cancel, self.computed)


class CacheRows:
    """Beams with a cache each; one is copied where a beam goes on in two ways."""

    kind = "caches"

    def __init__(
        self,
        backend: Backend,
        caches: list[KvCache],
        cancel: CancelToken | None,
        computed: int = 0,
    ) -> None:
        self._backend, self._caches, self._cancel = backend, caches, cancel
        self.computed = computed

    def extend(self, moves: Sequence[Move], full_logits: bool = True) -> StepOutput:
        """See BeamRows.extend."""
        used: set[int] = set()
        caches = []
        for row in [move.row for move in moves]:
            caches.append(self._caches[row].fork() if row in used else self._caches[row])
            used.add(row)
        outputs = []
        for cache, move in zip(caches, moves, strict=True):
            output = self._backend.step(
                Tree.chain([move.token]), cache, None, self._cancel, full_logits=full_logits
            )
            cache.commit([0])
            outputs.append(output)
        self._caches = caches
        self.computed += len(moves)
        return _joined(outputs)


def _joined(outputs: Sequence[StepOutput]) -> StepOutput:
    """The rows of several steps as those of one. Every step ran on another cache, so all are
    valid still."""
    logits = np.concatenate([output.logits for output in outputs])
    tops = [output.top for output in outputs if output.top is not None]
    if len(tops) < len(outputs):
        return StepOutput(logits)

    def join(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(top, name) for top in tops])

    return StepOutput(logits, {}, TopTokens(join("values"), join("ids"), join("log_sum")))
