"""Predictors over graphs that give rows back: an auxiliary graph for rows of the target's cache."""

from __future__ import annotations

import numpy as np

from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError
from quickdraft.kvcache.by_head import ByHeadCache
from quickdraft.manifest import RowsLayout, Variant
from quickdraft.runtime.backends.base import Backend, CancelToken
from quickdraft.runtime.backends.rows_step import Graphs, Request, Runner, Step, pieces
from quickdraft.runtime.backends.slots_predictor import Run, SlotsPredictor

_NONE = np.zeros(0, np.int64)


class RowsPredictor(SlotsPredictor[ByHeadCache]):
    """A Predictor over loaded graphs, shared by all conversations, less its engine."""

    caches = ByHeadCache
    kind = "rows"

    def __init__(self, backend: Backend, variant: Variant) -> None:
        """The predictor `variant` for the target `backend`; a subclass calls `_open` then.

        Raises:
            BundleError: the variant is no predictor, or fills caches of another kind.
        """
        super().__init__(backend, variant)
        self._variant = variant
        self._widths = tuple(sorted(variant.widths))
        self._capacity = variant.capacity
        if variant.capacity:
            self._limit = min(self._limit, variant.capacity)
        self._runner: Runner | None = None

    def _open(self, graphs: Graphs) -> None:
        self._runner = Runner(self.spec, self._variant, graphs)

    def _new_cache(self, rows: int) -> ByHeadCache:
        if self._capacity:
            return ByHeadCache(self.spec, self._capacity, fixed=True)
        return ByHeadCache(self.spec, rows)

    def _begin(self, cache: ByHeadCache) -> Run[ByHeadCache]:
        runner, layout = self._runner, self.target_layout
        assert isinstance(layout, RowsLayout)  # as `kind` says  # noqa: S101
        if runner is None:
            raise BackendError("the predictor was closed")
        requests: dict[int, Request] = {}
        layers = range(self.target.num_layers)

        def run(tree: Tree, own: ByHeadCache, row: int, cancel: CancelToken | None) -> None:
            step = Step(tree, own.length, _NONE)
            for piece in pieces(len(tree), _NONE, self._widths):
                request = runner.run(step, piece, own, requests, cancel)
                request.give(layout, layers, cache, row + piece.start, piece.end - piece.start)

        return run

    def close(self) -> None:
        """Release the graphs."""
        self._runner = None
