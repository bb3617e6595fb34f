"""Heads that say tokens ahead as a function of the last tokens and of nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny.toy_backend import hashed, top_tokens, toy_spec
from tiny.toy_head import WIDTH

from quickdraft.drafters.base import HeadOutput
from quickdraft.drafters.tree import Tree
from quickdraft.kvcache.contiguous import ContiguousCache

HEADS = 3
Floats = NDArray[np.float32]


class _Ahead:
    """What both kinds share. steps: tokens, features and rows of all steps."""

    kind = ""

    def __init__(self, vocab: int, context_length: int, width: int = WIDTH) -> None:
        self.details: dict[str, Any] = {"kind": self.kind, "hidden_states": [1], "heads": HEADS}
        self.features = width
        self.context_length = context_length
        self.steps: list[tuple[list[int], Floats, list[int]]] = []
        self._vocab = vocab
        self._law = hashed(vocab, scale=4.0)

    def new_cache(self) -> ContiguousCache:
        return ContiguousCache(toy_spec(self._vocab, self.context_length), capacity=1)

    def close(self) -> None:
        """Nothing to release."""

    def _said(self, logits: Floats, states: Floats) -> HeadOutput:
        top = top_tokens(logits, 8)
        return HeadOutput(top.ids, top.values - top.log_sum[:, None], states)

    def _note(self, tree: Tree, features: Floats, rows: Sequence[int]) -> None:
        assert features.shape == (len(tree), self.features)
        assert features.dtype == np.float32
        self.steps.append((tree.tokens.tolist(), features.copy(), list(rows)))


class ToyMedusa(_Ahead):
    """Head k says `law(before, last token it knows of, k)`."""

    kind = "medusa"

    def law(self, before: int, head: int) -> Floats:
        """Logits of a head after a state of the token `before`."""
        return self._law((before, head))

    def step(self, tree: Tree, cache: Any, features: Floats, rows: Sequence[int]) -> HeadOutput:
        self._note(tree, features, rows)
        assert len(tree) == 1
        logits = np.stack([self.law(int(features[0, 0]), head) for head in rows])
        return self._said(logits, features[:, :0])


class ToyHydra(_Ahead):
    """Head k says `law(before, the k tokens after it)`; its state is its token."""

    kind = "hydra"

    def __init__(self, number: int, vocab: int, context_length: int) -> None:
        super().__init__(vocab, context_length, number * WIDTH)
        self.details["state"] = 1

    def law(self, before: int, path: Sequence[int]) -> Floats:
        """Logits after a state of the token `before` and a path."""
        return self._law((before, *path))

    def step(self, tree: Tree, cache: Any, features: Floats, rows: Sequence[int]) -> HeadOutput:
        self._note(tree, features, rows)
        known = features.reshape(len(tree), -1, WIDTH)[:, :, 0].astype(int).tolist()
        tokens = tree.tokens.tolist()
        logits = [self.law(known[row][0], [*known[row][1:], tokens[row]]) for row in rows]
        states = np.zeros((len(tree), WIDTH), np.float32)
        states[:, 0] = tokens
        return self._said(np.stack(logits), states)
