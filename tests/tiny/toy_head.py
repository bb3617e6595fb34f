"""A head whose words are a function of the tokens a row really sees, and of nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny.toy_backend import LogitsOf, ToyBackend, top_tokens, toy_spec

from quickdraft.drafters.base import HeadOutput
from quickdraft.drafters.tree import Tree
from quickdraft.kvcache.contiguous import ContiguousCache

WIDTH = 4
"""Of the hidden states of a toy backend."""


class ToyHead:
    """Reads the states after layer 1. steps: tokens, parents and features of all steps.

    Its own state holds, in every row, the row's token and a sign that it was drafted.
    """

    features = 2 * WIDTH

    def __init__(self, logits_of: LogitsOf, vocab: int, context_length: int) -> None:
        self.details: dict[str, Any] = {"kind": "eagle", "hidden_states": [1], "state": 1}
        self.context_length = context_length
        self.closed = False
        self.vocab = vocab
        self.steps: list[tuple[list[int], list[int], NDArray[np.float32]]] = []
        self._backend = ToyBackend(logits_of, toy_spec(vocab, context_length))

    def new_cache(self) -> ContiguousCache:
        return self._backend.new_cache()

    def step(
        self,
        tree: Tree,
        cache: ContiguousCache,
        features: NDArray[np.float32],
        rows: Sequence[int],
    ) -> HeadOutput:
        assert features.shape == (len(tree), self.features)
        assert features.dtype == np.float32
        told, own = features[:, :WIDTH], features[:, WIDTH:]
        assert self.features != 2 * WIDTH or not (told.any(axis=1) & own.any(axis=1)).any(), (
            "states of the target and its own"
        )
        self.steps.append((tree.tokens.tolist(), tree.parent.tolist(), features.copy()))
        logits = self._backend.step(tree, cache, np.asarray(rows, np.int64)).logits
        top = top_tokens(logits, min(8, logits.shape[1]))
        states = np.zeros((len(tree), WIDTH), np.float32)
        states[:, 0], states[:, 3] = tree.tokens, -1
        return HeadOutput(top.ids, top.values - top.log_sum[:, None], states)

    def close(self) -> None:
        self.closed = True


class ToyFalcon(ToyHead):
    """Says a block of BLOCK tokens; token k of it is what it says next, moved on by k."""

    BLOCK = 2

    def __init__(self, logits_of: LogitsOf, vocab: int, context_length: int) -> None:
        super().__init__(logits_of, vocab, context_length)
        self.details |= {"kind": "falcon", "block": self.BLOCK}

    def step(
        self,
        tree: Tree,
        cache: ContiguousCache,
        features: NDArray[np.float32],
        rows: Sequence[int],
    ) -> HeadOutput:
        """State k of a row holds the row's token and k."""
        places, depths = np.asarray(rows) % len(tree), np.asarray(rows) // len(tree)
        said = super().step(tree, cache, features, places.tolist())
        ids = (said.ids + depths[:, None]) % self.vocab
        states = [said.states.copy() for _ in range(self.BLOCK)]
        for depth, each in enumerate(states):
            each[:, 1] = depth
        return HeadOutput(ids, said.log_probs, np.concatenate(states, 1))


class ToyClover(ToyHead):
    """Block and cell. The cell sees nothing but its path and the state before it; of a row it says
    what `logits_of` says of the tokens of the path."""

    features = WIDTH

    def __init__(self, logits_of: LogitsOf, vocab: int, context_length: int) -> None:
        super().__init__(logits_of, vocab, context_length)
        self.details |= {"kind": "clover"}


class ToyChimera(ToyHead):
    """Reads the states after layer 1 twice, once in place of embeddings."""

    features = 3 * WIDTH

    def __init__(self, logits_of: LogitsOf, vocab: int, context_length: int) -> None:
        super().__init__(logits_of, vocab, context_length)
        self.details |= {"kind": "chimera", "hidden_states": [1, 1]}
