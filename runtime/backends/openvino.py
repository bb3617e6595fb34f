"""OpenVINO on CPU, GPU or NPU: a graph for any number of rows, or several for fixed ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quickdraft.manifest import Variant
from quickdraft.runtime.backends import openvino_device
from quickdraft.runtime.backends.base import refuse_kv_types
from quickdraft.runtime.backends.openvino_memory import OpenVinoEncoder
from quickdraft.runtime.backends.openvino_step import Graphs
from quickdraft.runtime.backends.rows_backend import RowsBackend, offered
from quickdraft.runtime.backends.rows_step import ANY
from quickdraft.types import ModelSpec


class OpenVinoBackend(RowsBackend):
    """A Backend over compiled graphs, shared by all conversations; each has requests of its own."""

    name = "openvino"

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        variant: Variant,
        threads: int | None = None,
        kv_cache: str | None = None,
        vocab_size: int | None = None,
        device: str | None = None,
        encoder: Variant | None = None,
    ) -> None:
        """Load the variant. threads: of one step, on the CPU. vocab_size: of the tokens that a part
        with a token map reads. device: `CPU`, `GPU.1`, `NPU`, `AUTO`, ...; None is the CPU.
        encoder: that of an encoder-decoder model.

        Raises:
            DeviceError: no such device here. OptionError: it does not take an option.
            MissingExtra: OpenVINO is not installed.
            BackendError: the device cannot compile the model.
            BundleError: the graph's inputs or outputs are not those of the manifest.
        """
        refuse_kv_types(self.name, kv_cache)
        self._device = openvino_device.check_device(device)
        found = offered(spec, variant, encoder)
        apart = bool(variant.widths) or variant.memory is not None
        how = openvino_device.properties(self._device, threads, apart, spec.family)
        graphs = Graphs(folder, spec, variant, self._device, how)
        # What cannot be shows at once.
        self._first: Any = graphs.compiled(min(variant.widths, default=ANY))
        reads = None
        if encoder is not None:
            reads = OpenVinoEncoder(folder, found, encoder, self._device, how)
        super().__init__(found, variant, graphs, vocab_size, reads)

    @property
    def device(self) -> str:
        """See Backend; of `AUTO`, also what it has chosen."""
        return openvino_device.placed(self._device, self._first)
