"""A nested draft: exits whose logits are a function of the tokens that a row really sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny.toy_backend import LogitsOf, ToyBackend, toy_spec

from quickdraft.drafters.tree import Tree
from quickdraft.kvcache.contiguous import ContiguousCache

EXITS = 3
Floats = NDArray[np.float32]


class ToyNested:
    """Exit `number`, from 1. Its stream is the token that its row has read, which later exits see
    instead of tokens; streams carry a mark of the exit they are from. rows: read by each step."""

    def __init__(self, number: int, logits_of: LogitsOf, vocab: int, context_length: int) -> None:
        self.details: dict[str, Any] = {"kind": "nested", "exits": EXITS}
        self.features = 0 if number == 1 else 2
        self.reads_memory = False
        self.vocab_size, self.context_length = vocab, context_length
        self.rows: list[int] = []
        self._number = number
        self._backend = ToyBackend(logits_of, toy_spec(vocab, context_length))

    def new_cache(self) -> ContiguousCache:
        return self._backend.new_cache()

    def new_cache_over(self, memory: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to release."""

    def whole(
        self, tree: Tree, cache: Any, features: Floats | None, rows: Sequence[int]
    ) -> tuple[Floats, Floats]:
        assert (features is None) == (self._number == 1)
        if features is not None:
            assert features.shape == (len(tree), 2)
            assert (features[:, 1] == self._number - 1).all(), "streams of the exit before"
            tree = Tree(features[:, 0].astype(np.int64), tree.parent)
        self.rows.append(len(tree))
        logits = self._backend.step(tree, cache, np.asarray(rows, np.int64)).logits
        streams = np.full((len(tree), 2), self._number, np.float32)
        streams[:, 0] = tree.tokens
        return logits, streams

    def logits(self, tree: Tree, cache: Any, rows: Sequence[int]) -> Floats:
        return self.whole(tree, cache, None, rows)[0]

    def step(self, tree: Tree, cache: Any, features: Floats, rows: Sequence[int]) -> Any:
        raise NotImplementedError
