"""Predictors without training: right ones, wrong ones, and how they are opened."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.tree import Tree
from quickdraft.kvcache.base import KvCache
from quickdraft.runtime.backends.base import Backend, CancelToken
from quickdraft.runtime.prediction import Prediction, PredictorEntry

Change = Callable[[NDArray[np.int64]], NDArray[np.int64]]


def unchanged(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    return tokens


def swapped(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Every token is another one of the vocabulary 0 .. 2n: neighbours change places."""
    return tokens ^ 1


class ToyPredictor:
    """Predicts the rows that the target has of other tokens: of the same ones, it is right.

    calls: how many tokens it was given, and rows the cache had then.
    """

    def __init__(self, backend: Backend, change: Change = unchanged, chunk: int = 7) -> None:
        self._backend = backend
        self._change = change
        self._chunk = chunk
        self.calls: list[tuple[int, int]] = []
        self.closed = False

    def predict(
        self, tokens: NDArray[np.int64], cache: KvCache, cancel: CancelToken | None = None
    ) -> None:
        held = cache.length
        assert held < len(tokens)
        assert not cache.predicted
        self.calls.append((len(tokens), held))
        try:
            while cache.length < len(tokens):
                chunk = tokens[cache.length : cache.length + self._chunk]
                last = np.array([len(chunk) - 1], np.int64)
                self._backend.step(Tree.chain(self._change(chunk)), cache, last, cancel)
                cache.commit(range(len(chunk)))
        except BaseException:
            cache.truncate(held)
            raise
        cache.mark_predicted()

    def close(self) -> None:
        self.closed = True


def toy_prediction(
    backend: Backend,
    *,
    right: ToyPredictor | None = None,
    wrong: ToyPredictor | None = None,
    exact_first: int = 0,
    second: Callable[[], Backend] | None = None,
) -> Prediction:
    """A predictor `right` and another one, `wrong`."""
    right = right or ToyPredictor(backend)
    wrong = wrong or ToyPredictor(backend, swapped)
    entries = [
        PredictorEntry("right", lambda: right, exact_first),
        PredictorEntry("wrong", lambda: wrong, exact_first),
    ]
    return Prediction(backend, entries, second)
