"""Exact rows in the background, for an answer that goes on over predicted ones.

Decoding waits for memory and prefill for arithmetic, so the two get in each other's way little: a
thread of its own runs the target over the prompt and over what was said since, into a second cache,
and takes no turns with the steps of the answer. When that cache lacks a few rows only, it takes the
place of the first one, and the next step of the answer computes those few as well, with all
threads. How many are few depends on what a row costs: a thread that chases an answer to its last
row is slower than that step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from quickdraft.drafters.tree import Tree
from quickdraft.errors import Cancelled
from quickdraft.kvcache.base import KvCache
from quickdraft.runtime.backends.base import Backend, CancelToken
from quickdraft.runtime.prediction import Prediction
from quickdraft.runtime.told_states import ToldStates

FEW = 8
"""Rows that a step of the answer may always compute besides its own. While the thread computes the
last rows that are missing, the answer goes on by a step or two: fewer would be chased for ever."""
MANY = 256
"""The most that it may,"""
WAIT = 0.04
"""and about as many seconds as it may take for them: so much later than without a refresh one token
of the answer comes."""
LEAST, MOST = 64, 256
"""Rows of a step of the thread, where there are so many: fewer would cost more each, and after more
it would know too late what is few."""
SPEEDUP = 2
"""How much faster a row is with all threads than with half of them, which the thread has."""

_log = logging.getLogger(__name__)


class Refresh:
    """A refresh that runs, from its construction to `stop`.

    cache: grows by exact rows of the tokens, and is the thread's alone until it has `ended`.
    backend: what it runs on, and what steps of the answer should run on meanwhile; None until it is
    loaded.
    """

    def __init__(
        self,
        prediction: Prediction,
        cache: KvCache,
        tokens: Sequence[int],
        chunk: int,
        told: ToldStates,
        hidden: Sequence[int] = (),
    ) -> None:
        """tokens: of the conversation so far; the last one is in no cache yet. chunk: rows of one
        step. told: grows by the hidden states `hidden` of the rows, and is the thread's as the
        cache is."""
        self.cache = cache
        self._told, self._hidden = told, hidden
        self.backend: Backend | None = None
        self._prediction = prediction
        self._tokens = list(tokens)  # grows at its end only, so the thread may read it meanwhile
        self._chunk = min(chunk, MOST)
        self._few = FEW
        self._cancel = CancelToken()
        self._started = time.perf_counter()
        self._seconds = 0.0
        self._pool = ThreadPoolExecutor(1, "quickdraft-refresh")
        self._future = self._pool.submit(self._run)
        self._pool.shutdown(wait=False)

    def tell(self, tokens: Sequence[int]) -> None:
        """Add tokens that were decided."""
        self._tokens += tokens

    @property
    def ended(self) -> bool:
        """Whether the thread has done all it will do."""
        return self._future.done()

    @property
    def error(self) -> str | None:
        """Why it ended too early; None if it did not, or was stopped."""
        failure = self._future.exception() if self._future.done() else None
        if failure is None or isinstance(failure, Cancelled):
            return None
        return f"{type(failure).__name__}: {failure}"

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self._seconds

    def stop(self) -> None:
        """End it within an op or two of the engine; the rows computed so far stay in the cache."""
        self._cancel.cancel()
        self._pool.shutdown()
        failure = self._future.exception()
        if failure is not None and not isinstance(failure, Cancelled):
            _log.warning("predicted rows were not replaced by exact ones", exc_info=failure)

    def _run(self) -> None:
        try:
            backend = self._prediction.second()
            self.backend = backend
            while tokens := self._next():
                tree, began = Tree.chain(tokens), time.perf_counter()
                last = np.array([len(tree) - 1], np.int64)
                output = backend.step(tree, self.cache, last, self._cancel, full_logits=False)
                if backend.flavour == "hotpath":  # others compile or pad for the rows of a step
                    self._few = few_rows((time.perf_counter() - began) / len(tree))
                if self._hidden:
                    self._told.add(self.cache.length, output.hidden_states, self._hidden)
                self.cache.commit(range(len(tree)))
        finally:
            self._seconds = time.perf_counter() - self._started

    def _next(self) -> list[int]:
        """Tokens whose rows come next; none when the rest is left to the answer."""
        at, missing = self.cache.length, len(self._tokens) - 1 - self.cache.length
        if missing <= self._few:
            return []
        rows = min(max(missing - self._few, LEAST), missing, self._chunk)
        return self._tokens[at : at + rows]


def few_rows(seconds: float) -> int:
    """How many missing rows are few where one takes so long with half of the threads."""
    if seconds * MANY <= SPEEDUP * WAIT:
        return MANY
    return max(int(SPEEDUP * WAIT / seconds), FEW)
