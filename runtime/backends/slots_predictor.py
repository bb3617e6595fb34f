"""What predictors over caches of slots share: the course of a prediction, chunk by chunk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, BundleError, ContextOverflow
from quickdraft.kvcache.base import KvCache
from quickdraft.kvcache.growing import GrowingCache
from quickdraft.manifest import CacheLayout, Variant
from quickdraft.runtime.backends.base import Backend, CancelToken
from quickdraft.runtime.backends.step_inputs import check_step

CHUNK = 256
"""Tokens of one run: cancelling waits for one at most, and its values fit the caches nearby."""

C = TypeVar("C", bound=GrowingCache)
Run = Callable[[Tree, C, int, CancelToken | None], None]
"""Runs a chain over an auxiliary cache that has it staged, and writes the target's rows from a
number on."""


class SlotsPredictor(ABC, Generic[C]):
    """A Predictor for caches of one key and one value tensor per layer, less its engine.

    Several conversations may share it: each prediction has an auxiliary cache of its own. A
    subclass names the class of caches that it knows, and the kind of their layout.
    """

    caches: type[C]
    kind: str

    def __init__(self, backend: Backend, variant: Variant) -> None:
        """For the target that `backend` runs.

        Raises:
            BundleError: the variant is no predictor, or fills caches of another kind.
        """
        own, target = variant.cache, variant.target_cache
        if variant.spec is None or target is None or not (own.kind == target.kind == self.kind):
            raise BundleError(f"{variant.model} is no predictor for caches of {self.kind}")
        self.own_layout: CacheLayout = own
        self.target_layout: CacheLayout = target
        self.spec = variant.spec
        self._is_whole = bool(variant.details.get("whole", False))
        self.target = backend.spec
        self._limit = min(self.spec.context_length, self.target.context_length)

    def predict(
        self, tokens: NDArray[np.int64], cache: KvCache, cancel: CancelToken | None = None
    ) -> KvCache | None:
        """See Predictor.predict."""
        if not isinstance(cache, self.caches):
            raise BackendError(f"this predictor fills other caches than {type(cache).__name__}")
        if len(tokens) > self._limit:
            raise ContextOverflow(len(tokens), self._limit, "prompt")
        held = cache.length
        cache.stage(len(tokens) - held)  # at once, so that its memory stays where it is
        try:
            run = self._begin(cache)
            own = self._new_cache(len(tokens))
            # Exact rows stay: what the graph makes of their tokens goes to slots written later.
            room = min(CHUNK, cache.capacity - held)
            edges = [*range(0, held, room), *range(held, len(tokens), CHUNK), len(tokens)]
            for start, end in pairwise(edges):
                chunk = Tree.chain(tokens[start:end])
                if cancel is not None:
                    cancel.check()
                check_step(chunk, start, self.spec)
                own.stage(len(chunk))
                run(chunk, own, max(start, held), cancel)
                own.commit(range(len(chunk)))
        except BaseException:
            cache.truncate(held)
            raise
        cache.commit(range(cache.staged))
        cache.mark_predicted()
        return own if self._is_whole else None

    @abstractmethod
    def _new_cache(self, rows: int) -> C:
        """An auxiliary cache for so many rows."""

    @abstractmethod
    def _begin(self, cache: C) -> Run[C]:
        """What runs the chunks of one prediction into a cache whose memory stays where it is.

        Raises:
            BackendError: the predictor was closed.
        """
