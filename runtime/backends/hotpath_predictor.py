"""Predictors of the hotpath flavour: an auxiliary model whose graph fills the target's cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import BackendError, BundleError, ContextOverflow
from quickdraft.kvcache.base import KvCache
from quickdraft.kvcache.blocked import KV_TYPES, BlockedCache
from quickdraft.manifest import BlocksLayout, Variant
from quickdraft.runtime.backends import hotpath, ort_session
from quickdraft.runtime.backends.base import Backend, CancelToken

CHUNK = 256
"""Tokens of one run: cancelling waits for one at most, and its values fit the caches nearby."""


class HotpathPredictor:
    """A Predictor over one InferenceSession, shared by all conversations."""

    def __init__(
        self, backend: Backend, folder: Path, variant: Variant, threads: int | None = None
    ) -> None:
        """Load the predictor `variant` for the target `backend`. threads: of one run; None means
        one per physical core.

        Raises:
            MissingExtra, BackendError: as HotpathBackend. BundleError: the graph is not what the
                manifest promises, or fills caches of another kind than the target's.
        """
        layouts = (variant.cache, variant.target_cache)
        if variant.spec is None or not all(isinstance(each, BlocksLayout) for each in layouts):
            raise BundleError(f"{variant.model} is no predictor for caches of the hotpath flavour")
        self._spec = variant.spec
        self._limit = min(variant.spec.context_length, backend.spec.context_length)
        self._variant = variant
        options = hotpath.session_options(threads)
        self._session: Any = ort_session.open_session(folder / variant.model, options)
        hotpath.check_names(self._session, variant)

    def predict(
        self, tokens: NDArray[np.int64], cache: KvCache, cancel: CancelToken | None = None
    ) -> KvCache | None:
        """See Predictor.predict."""
        session = self._session
        if session is None:
            raise BackendError("the predictor was closed")
        if not isinstance(cache, BlockedCache):
            raise BackendError(f"this predictor fills other caches than {type(cache).__name__}")
        if int(tokens.min()) < 0 or int(tokens.max()) >= self._spec.vocab_size:
            raise BackendError(f"a token id is outside the vocabulary of {self._spec.vocab_size}")
        if len(tokens) > self._limit:
            raise ContextOverflow(len(tokens), self._limit, "prompt")
        held = cache.length
        cache.stage(len(tokens) - held)  # at once, so that its memory stays where it is
        try:
            run = _Run(session, self._variant, len(tokens), cache)
            # Exact rows stay: what the graph makes of their tokens goes to slots written later.
            room = min(CHUNK, cache.capacity - held)
            for start in range(0, held, room):
                run(tokens[start : min(start + room, held)], start, held, cancel)
            for start in range(held, len(tokens), CHUNK):
                run(tokens[start : start + CHUNK], start, start, cancel)
        except BaseException:
            cache.truncate(held)
            raise
        cache.commit(range(cache.staged))
        cache.mark_predicted()
        return run.filled(len(tokens)) if self._variant.details.get("whole", False) else None

    def close(self) -> None:
        """Release the session."""
        self._session = None


class _Run:
    """One prediction: the auxiliary model's cache, and memory bound for each size of chunk."""

    def __init__(self, session: Any, variant: Variant, tokens: int, target: BlockedCache) -> None:
        assert variant.spec is not None  # a predictor has one  # noqa: S101
        self._session = session
        self._variant = variant
        self._target = target
        self._own = BlockedCache(variant.spec, target.kv_type, tokens)
        self._chunks: dict[int, _Chunk] = {}

    def __call__(
        self, tokens: NDArray[np.int64], start: int, row: int, cancel: CancelToken | None
    ) -> None:
        """Run tokens at positions from `start` on, and write the target's rows from `row` on."""
        if cancel is not None:
            cancel.check()
        chunk = self._chunks.get(len(tokens))
        if chunk is None:
            bound = ort_session.Bound(self._session)
            chunk = _Chunk(bound, self._variant, len(tokens), self._own, self._target)
            self._chunks[len(tokens)] = chunk
        chunk.tokens[:] = tokens
        chunk.positions[:] = np.arange(start, start + len(tokens))
        chunk.past[0], chunk.target_past[0] = start, row
        chunk.bound.run(cancel)

    def filled(self, rows: int) -> BlockedCache:
        """The auxiliary model's cache, once so many rows were run."""
        self._own.stage(rows)
        self._own.commit(range(rows))
        return self._own


class _Chunk:
    """Inputs of all runs of `rows` tokens; a binding does not keep the memory it is given."""

    def __init__(
        self,
        bound: ort_session.Bound,
        variant: Variant,
        rows: int,
        own: BlockedCache,
        target: BlockedCache,
    ) -> None:
        self.bound = bound
        self.tokens, self.positions = np.zeros((2, rows), np.int64)
        self.ancestors = np.zeros((rows, 0), np.int32)
        self.past, self.target_past = (
            np.array([0, KV_TYPES[cache.kv_type], cache.capacity], np.int64)
            for cache in (own, target)
        )
        step = variant.step
        for name, array in (
            (step.tokens, self.tokens),
            (str(step.positions), self.positions),
            (step.ancestors, self.ancestors),
            (step.past, self.past),
            (step.target_past, self.target_past),
        ):
            bound.input(str(name), array)
        for layout, cache in ((variant.cache, own), (variant.target_cache, target)):
            assert isinstance(layout, BlocksLayout)  # noqa: S101  (checked on opening)
            bound.in_place(layout.cache, layout.present, cache.buffer)
