"""The compiled graphs of a variant for OpenVINO, and requests of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.device_profiles import machine
from quickdraft.errors import BundleError
from quickdraft.manifest import Variant
from quickdraft.runtime.backends import openvino_device
from quickdraft.runtime.backends.base import CancelToken
from quickdraft.runtime.backends.rows_step import ANY, Request, tensor_names
from quickdraft.types import ModelSpec


class OpenVinoRequest(Request):
    """A Request over an inference request of OpenVINO."""

    def __init__(self, request: Any, outputs: int, width: int, ran: set[int]) -> None:
        """ran: widths of the graph's variant that have run, added to here."""
        super().__init__(outputs)
        self._request = request
        self._width, self._ran = width, ran

    def read_from(self, name: str, array: NDArray[Any]) -> None:
        """See Request."""
        self._request.set_tensor(name, openvino_device.tensor(array))

    def run(self, cancel: CancelToken | None) -> None:
        """See Request."""
        openvino_device.run(self._request, cancel)
        if self._width not in self._ran:
            # Until here a graph of fixed shapes held a cache of its own, which it has now let go.
            self._ran.add(self._width)
            machine.give_back_memory()

    def result(self, name: str | None) -> NDArray[np.float32]:
        """See Request."""
        values: NDArray[np.float32] = self._request.get_tensor(str(name)).data
        return values


class Graphs:
    """The compiled graphs of a variant. Each is compiled when it is first needed: compiled ones
    hold their weights in a form of their own, and most conversations need two or three."""

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        variant: Variant,
        device: str,
        how: Mapping[str, Any],
        target: ModelSpec | None = None,
    ) -> None:
        """how: properties to compile with. target: facts of the model that a predictor or encoder
        is for.

        Raises:
            BundleError: the variant has no file of weights.
        """
        binaries = [name for name in variant.files if name.endswith(".bin")]
        if len(binaries) != 1:
            raise BundleError(f"{variant.model} has {len(binaries)} files of weights, not one")
        self._weights = folder / binaries[0]
        self._files = {ANY: folder / variant.model}
        self._files |= {rows: folder / name for rows, name in variant.widths.items()}
        self._device, self._how = device, how
        self._names = tensor_names(spec, variant, target)
        self._output_rows = variant.step.output_rows
        self._compiled: dict[int, Any] = {}
        self._ran: set[int] = set()
        self._lock = Lock()

    def compiled(self, width: int) -> Any:
        """The graph of a width (ANY: of any number of rows).

        Raises:
            BundleError, BackendError: see openvino_device.compile_graph.
        """
        with self._lock:
            if width not in self._compiled:
                model = self._files[width]
                made = openvino_device.compile_graph(model, self._weights, self._device, self._how)
                openvino_device.check_names(model.name, made, *self._names)
                self._compiled[width] = made
            return self._compiled[width]

    def request(self, width: int) -> OpenVinoRequest:
        """See rows_step.Graphs."""
        compiled, outputs = self.compiled(width), 0
        if width != ANY and self._output_rows is not None:
            (outputs,) = compiled.input(self._output_rows).shape
        return OpenVinoRequest(compiled.create_infer_request(), outputs, width, self._ran)
