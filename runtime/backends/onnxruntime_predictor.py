"""Predictors of the portable flavour: an auxiliary graph that fills the target's cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError
from quickdraft.kvcache.contiguous import ContiguousCache, align_slots
from quickdraft.manifest import SlotsLayout, Variant
from quickdraft.runtime.backends import ort_session
from quickdraft.runtime.backends.base import Backend, CancelToken
from quickdraft.runtime.backends.onnxruntime import State, cached_layers, check_names, step_feeds
from quickdraft.runtime.backends.slots_predictor import Run, SlotsPredictor


class OnnxRuntimePredictor(SlotsPredictor[ContiguousCache]):
    """A Predictor over one InferenceSession, shared by all conversations."""

    caches = ContiguousCache
    kind = "slots"

    def __init__(
        self, backend: Backend, folder: Path, variant: Variant, threads: int | None = None
    ) -> None:
        """Load the predictor `variant` for the target `backend`. threads: of one run; None means
        one per physical core.

        Raises:
            MissingExtra: onnxruntime is not installed. BackendError: it cannot load the graph.
            BundleError: the graph is not what the manifest promises, or fills other caches.
        """
        super().__init__(backend, variant)
        options = ort_session.options(threads, beside=True)
        self._variant = variant
        self._session: Any = ort_session.open_session(folder / variant.model, options)
        check_names(self._session, self.spec, variant, self.target)

    def _new_cache(self, rows: int) -> ContiguousCache:
        return ContiguousCache(self.spec, rows)

    def _begin(self, cache: ContiguousCache) -> Run[ContiguousCache]:
        session, variant, step = self._session, self._variant, self._variant.step
        if session is None:
            raise BackendError("the predictor was closed")
        own_layout, target_layout = self.own_layout, self.target_layout
        # What `kind` says, for type checkers.
        assert isinstance(own_layout, SlotsLayout)  # noqa: S101
        assert isinstance(target_layout, SlotsLayout)  # noqa: S101
        state = State(session)
        state.bind(target_layout, cache, range(self.target.num_layers), cache.capacity)

        def run(tree: Tree, own: ContiguousCache, row: int, cancel: CancelToken | None) -> None:
            slots = align_slots(own.length + len(tree))
            if (state.version, state.slots) != (own.version, slots):
                state.bind(own_layout, own, cached_layers(self.spec, variant), slots)
                state.version, state.slots = own.version, slots
            state.feed(step_feeds(step, tree, own.length))
            state.feed({str(step.target_rows): np.arange(row, row + len(tree))})
            state.bound.run(cancel)

        return run

    def close(self) -> None:
        """Release the session."""
        self._session = None
