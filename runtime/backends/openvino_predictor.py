"""Predictors over OpenVINO: an auxiliary graph that gives rows of the target's cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError
from quickdraft.kvcache.by_head import ByHeadCache
from quickdraft.manifest import RowsLayout, Variant
from quickdraft.runtime.backends import openvino_device
from quickdraft.runtime.backends.base import Backend, CancelToken
from quickdraft.runtime.backends.openvino_step import (
    ANY,
    Graphs,
    Request,
    Runner,
    Step,
    pieces,
)
from quickdraft.runtime.backends.slots_predictor import Run, SlotsPredictor

_NONE = np.zeros(0, np.int64)


class OpenVinoPredictor(SlotsPredictor[ByHeadCache]):
    """A Predictor over compiled graphs, shared by all conversations, on the target's device."""

    caches = ByHeadCache
    kind = "rows"

    def __init__(
        self, backend: Backend, folder: Path, variant: Variant, threads: int | None = None
    ) -> None:
        """Load the predictor `variant` for the target `backend`. threads: of one run, on the CPU.

        Raises:
            OptionError: the device has no threads to set.
            MissingExtra: OpenVINO is not installed.
            BackendError: the device cannot compile the graph.
            BundleError: the graph is not what the manifest promises, or fills other caches.
        """
        super().__init__(backend, variant)
        device = openvino_device.check_device(backend.device.partition(" ")[0])
        how = openvino_device.properties(device, threads, bool(variant.widths))
        graphs = Graphs(folder, self.spec, variant, device, how, self.target)
        self._widths = tuple(sorted(variant.widths))
        graphs.compiled(self._widths[0] if self._widths else ANY)
        self._capacity = variant.capacity
        if variant.capacity:
            self._limit = min(self._limit, variant.capacity)
        self._runner: Runner | None = Runner(self.spec, variant, graphs)

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
        """Release the compiled graphs."""
        self._runner = None
