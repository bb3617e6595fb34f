"""Drafted tokens with parents: the one form every drafter proposes and every backend verifies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tree:
    """Tokens to verify in one step.

    tokens: int64 [n]. parent: int64 [n], -1 for a node whose parent is the committed cache.
    Parents come before children. In decoding there is one root, node 0: the last decided token,
    not yet in the cache. A chain (parent[i] = i - 1) is a tree, and so is a chunk of a prompt.
    """

    tokens: NDArray[np.int64]
    parent: NDArray[np.int64]

    def __post_init__(self) -> None:
        n = len(self.tokens)
        if n < 1 or self.tokens.shape != (n,) or self.parent.shape != (n,):
            raise ValueError(
                f"a tree needs equal, non-empty 1-d arrays, got {self.tokens.shape}"
                f" and {self.parent.shape}"
            )
        if (self.parent < -1).any() or (self.parent >= np.arange(n)).any():
            raise ValueError("parents must come before their children, and roots have parent -1")

    @classmethod
    def chain(cls, tokens: Sequence[int] | NDArray[np.int64]) -> Tree:
        """A tree without branches; the first token is the root."""
        array = np.asarray(tokens, np.int64)
        if array.ndim != 1 or not len(array):
            raise ValueError(f"a chain needs a non-empty 1-d array, got shape {array.shape}")
        # Made once per decoded token: what the checks would find is known.
        tree = object.__new__(cls)
        parent = np.arange(-1, len(array) - 1, dtype=np.int64)
        tree.__dict__.update(tokens=array, parent=parent, is_chain=True)
        return tree

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def is_chain(self) -> bool:
        """Whether every node follows the one before it."""
        return bool((self.parent == np.arange(-1, len(self) - 1)).all())

    @cached_property
    def depth(self) -> NDArray[np.int64]:
        """int64 [n]: number of ancestors; the position of node i is cache length + depth[i]."""
        if self.is_chain:
            return np.arange(len(self), dtype=np.int64)
        depth = np.zeros(len(self), np.int64)
        for i, p in enumerate(self.parent):
            depth[i] = depth[p] + 1 if p >= 0 else 0
        return depth

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Bool [n, n]: node i may attend node j iff j is i or one of its ancestors."""
        n = len(self)
        if self.is_chain:
            return np.tri(n, dtype=np.bool_)
        mask = np.eye(n, dtype=np.bool_)
        for i, p in enumerate(self.parent):
            if p >= 0:
                mask[i] |= mask[p]
        return mask

    def after(self, tokens: Sequence[int]) -> Tree:
        """The same tree at the end of a chain of tokens."""
        n = len(tokens)
        chain = np.arange(-1, n - 1, dtype=np.int64)
        token = np.concatenate([np.asarray(tokens, np.int64), self.tokens])
        return Tree(token, np.concatenate([chain, self.parent + n]))

    def children(self, node: int) -> list[int]:
        """Nodes whose parent is `node`, in order."""
        return [int(i) for i in np.flatnonzero(self.parent == node)]
