"""Predictors over OpenVINO: an auxiliary graph that gives rows of the target's cache."""

from __future__ import annotations

from pathlib import Path

from quickdraft.manifest import Variant
from quickdraft.runtime.backends import openvino_device
from quickdraft.runtime.backends.base import Backend
from quickdraft.runtime.backends.openvino_step import Graphs
from quickdraft.runtime.backends.rows_predictor import RowsPredictor
from quickdraft.runtime.backends.rows_step import ANY


class OpenVinoPredictor(RowsPredictor):
    """A Predictor over compiled graphs, shared by all conversations, on the target's device."""

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
        graphs.compiled(min(variant.widths, default=ANY))
        self._open(graphs)
