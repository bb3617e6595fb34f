"""Predictors of static ONNX graphs: rows of the target's cache, in chunks of fixed widths."""

from __future__ import annotations

from pathlib import Path

from quickdraft.manifest import Variant
from quickdraft.runtime.backends.base import Backend
from quickdraft.runtime.backends.onnxruntime_static import Sessions
from quickdraft.runtime.backends.rows_predictor import RowsPredictor


class OnnxRuntimeStaticPredictor(RowsPredictor):
    """A Predictor over sessions shared by all conversations, on the target's device."""

    def __init__(
        self, backend: Backend, folder: Path, variant: Variant, threads: int | None = None
    ) -> None:
        """Load the predictor `variant` for the target `backend`. threads: of one run.

        Raises:
            DeviceError: the device is not there, or takes nothing of the graph.
            MissingExtra: onnxruntime is not installed.
            BackendError: onnxruntime cannot load the graph.
            BundleError: the graph is not what the manifest promises, or fills other caches.
        """
        super().__init__(backend, variant)
        sessions = Sessions(folder, self.spec, variant, backend.device, threads, self.target)
        self._open(sessions)
