"""ONNX Runtime on static graphs, with any of its execution providers: the form for NPUs."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import BundleError
from quickdraft.manifest import Variant
from quickdraft.runtime.backends import ort_session, providers
from quickdraft.runtime.backends.base import CancelToken, refuse_kv_types
from quickdraft.runtime.backends.rows_backend import RowsBackend, offered
from quickdraft.runtime.backends.rows_step import Request, tensor_names
from quickdraft.types import ModelSpec

CPU = "CPU"


class OnnxRequest(Request):
    """A Request over a session.

    Inputs are given as they are at every run, not bound: providers with memory of their own copy
    what is bound when it is bound, and would not see the rows that came later.
    """

    def __init__(self, session: Any, outputs: int) -> None:
        super().__init__(outputs)
        self._session = session
        self._runs = ort_session.Runs()
        self._feeds: dict[str, NDArray[Any]] = {}
        self._names = [value.name for value in session.get_outputs()]
        self._results: dict[str, NDArray[np.float32]] = {}

    def read_from(self, name: str, array: NDArray[Any]) -> None:
        """See Request."""
        self._feeds[name] = array

    def run(self, cancel: CancelToken | None) -> None:
        """See Request."""
        values = self._runs.run(self._start, cancel)
        self._results = dict(zip(self._names, values, strict=True))

    def _start(self, how: Any) -> list[NDArray[np.float32]]:
        values: list[NDArray[np.float32]] = self._session.run(self._names, self._feeds, how)
        return values

    def result(self, name: str | None) -> NDArray[np.float32]:
        """See Request."""
        return self._results[str(name)]


class Sessions:
    """A session for each width of a variant, opened when it is first needed: a provider compiles
    for a while, and most conversations need two or three."""

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        variant: Variant,
        device: str,
        threads: int | None,
        target: ModelSpec | None = None,
    ) -> None:
        """device: see `providers`. threads: of one step on the processor; None means one per
        physical core. target: facts of the model that a predictor is for.

        Raises:
            DeviceError: the device is not there, or takes nothing of the graph.
            MissingExtra: onnxruntime is not installed.
            BackendError, BundleError: see `opened`, for the narrowest width.
        """
        self._options = ort_session.options(threads, beside=variant.spec is not None)
        self._providers = providers.use(self._options, device)
        self._files = {rows: folder / name for rows, name in variant.widths.items()}
        self._names = tensor_names(spec, variant, target)
        self._output_rows = variant.step.output_rows
        self._opened: dict[int, Any] = {}
        self._lock = Lock()
        # What cannot be shows at once.
        self.degraded = providers.fallen_back([self.opened(min(self._files))], device)

    def opened(self, width: int) -> Any:
        """The session of a width.

        Raises:
            BackendError: onnxruntime cannot load the graph.
            BundleError: its inputs or outputs are not those of the manifest.
        """
        with self._lock:
            if width not in self._opened:
                model = self._files[width]
                made = ort_session.open_session(model, self._options, self._providers)
                ort_session.check_names(model.name, made, *self._names)
                self._opened[width] = made
            return self._opened[width]

    def request(self, width: int) -> OnnxRequest:
        """See rows_step.Graphs."""
        session, outputs = self.opened(width), 0
        for value in session.get_inputs():
            if value.name == self._output_rows:
                (outputs,) = value.shape
        return OnnxRequest(session, outputs)


class OnnxRuntimeStatic(RowsBackend):
    """A Backend over one InferenceSession a width, shared by all conversations.

    device: a provider of ONNX Runtime, see `providers`. degraded: what of it does not run there,
    None if all does.
    """

    name = "onnxruntime_static"

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        variant: Variant,
        threads: int | None = None,
        kv_cache: str | None = None,
        vocab_size: int | None = None,
        device: str = CPU,
        encoder: Variant | None = None,
    ) -> None:
        """Load the variant. threads: of one step on the processor. vocab_size: of the tokens that a
        part with a token map reads. device: `CPU`, `QNN`, `OpenVINO.NPU`, ...
        encoder: None, as there are no static ONNX graphs of encoder-decoder models.

        Raises:
            OptionError: kv_cache is not f32. MissingExtra: onnxruntime is not installed.
            DeviceError: the device is not there, or takes nothing of the graph.
            BackendError: onnxruntime cannot load the model.
            BundleError: the graph's inputs or outputs are not those of the manifest.
        """
        refuse_kv_types(self.name, kv_cache)
        self.device = device
        found = offered(spec, variant, encoder)
        if encoder is not None or not variant.widths:
            raise BundleError(f"{variant.model} is no static graph of a decoder-only model")
        graphs = Sessions(folder, spec, variant, device, threads)
        self.degraded = graphs.degraded
        super().__init__(found, variant, graphs, vocab_size)
