"""Encoders over OpenVINO, and the memories that they put out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import BackendError, BundleError
from quickdraft.kvcache.by_head import ByHeadMemory, aligned_zeros
from quickdraft.kvcache.memory import Source
from quickdraft.manifest import RowsLayout, Variant
from quickdraft.runtime.backends.base import CancelToken
from quickdraft.runtime.backends.openvino_step import Graphs
from quickdraft.runtime.backends.rows_step import ANY, Request, source_bias
from quickdraft.types import ModelSpec


class OpenVinoEncoder:
    """Reads sources with compiled graphs: one for any number of rows, or the narrowest of several
    that holds a source, its rows filled up and masked."""

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        variant: Variant,
        device: str,
        how: Mapping[str, Any],
    ) -> None:
        """Load the encoder `variant` for the target `spec`. how: properties to compile with.

        Raises:
            BackendError: the device cannot compile the graph. BundleError: its inputs or outputs
                are not those of the manifest.
        """
        if variant.spec is None or not isinstance(variant.memory, RowsLayout):
            raise BundleError(f"{variant.model} has no memory of 'rows'; export the model again")
        self._spec, self._variant, self._layout = spec, variant, variant.memory
        self._widths = tuple(sorted(variant.widths))
        graphs = Graphs(folder, variant.spec, variant, device, how, spec)
        graphs.compiled(self._widths[0] if self._widths else ANY)
        self._graphs: Graphs | None = graphs

    def encode(self, source: Source, cancel: CancelToken | None = None) -> ByHeadMemory:
        """See Seq2SeqBackend.encode."""
        graphs = self._graphs
        if graphs is None:
            raise BackendError("the model was closed")
        source.check(self._spec)
        if cancel is not None:
            cancel.check()
        assert self._spec.source is not None  # checked just now  # noqa: S101
        positions = source.positions(self._spec.source)
        width = next((each for each in self._widths if each >= len(positions)), ANY)
        request = graphs.request(width)
        names, rows = self._variant.step, width or len(positions)
        request.feed(names.positions, positions, rows)
        if source.features is not None:  # as many as the graph takes, or it takes any number
            frames = np.asarray(source.features, np.float32)
            request.feed(names.features, frames, len(frames))
        if source.tokens is not None:
            request.feed(names.tokens, source.tokens, rows)
        if names.source is not None:
            request.feed(names.source, source_bias(len(positions), rows), 1)
        request.run(cancel)
        return self._memory(request, len(positions))

    def _memory(self, request: Request, rows: int) -> ByHeadMemory:
        """What a request put out, in as many slots as the target reads."""
        slots = self._variant.capacity or rows

        def take(pattern: str, layer: int) -> NDArray[np.float32]:
            found = request.result(pattern.format(layer=layer))[:, :rows]
            kept = aligned_zeros((found.shape[0], slots, found.shape[2]))
            kept[:, :rows] = found
            return kept

        layout = self._layout
        return ByHeadMemory(
            tuple(
                (take(layout.present_key, layer), take(layout.present_value, layer))
                for layer in range(self._spec.num_layers)
            ),
            rows,
        )

    def close(self) -> None:
        """Release the compiled graphs."""
        self._graphs = None
