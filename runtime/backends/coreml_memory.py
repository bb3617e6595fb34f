"""Encoders as Core ML packages, and what a step is fed of the memories that they put out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import BackendError, BundleError
from quickdraft.kvcache.by_head import ByHeadMemory
from quickdraft.kvcache.memory import Memory, Source
from quickdraft.manifest import RowsLayout, Variant
from quickdraft.runtime.backends.coreml_engine import Engine, open_engine
from quickdraft.types import ModelSpec

Array = NDArray[Any]
HIDDEN = np.float16(-4e4)
"""Bias of a slot that a row must not see: added to any score it stays within float16."""


class CoreMlEncoder:
    """Reads sources with the narrowest function that holds them, filled up and masked."""

    def __init__(
        self, folder: Path, spec: ModelSpec, variant: Variant, real: Any, device: str | None
    ) -> None:
        """Load the encoder `variant` for the target `spec`. real: type of what it computes.

        Raises:
            BundleError: the package is damaged, or not what the manifest says.
            BackendError: Core ML is not here or cannot load the package.
        """
        names = variant.details.get("functions")
        widths = {str(rows) for rows in variant.widths}
        if not isinstance(names, dict) or set(names) != widths:
            raise BundleError(f"{variant.model} does not name its functions; export it again")
        self._functions = {rows: str(names[str(rows)]) for rows in sorted(variant.widths)}
        self._spec, self._variant, self._real = spec, variant, real
        self._layout = memory_layout(variant)
        package = (folder / variant.model).parents[2]
        self._engine: Engine | None = open_engine(package, tuple(self._functions.values()), device)

    def encode(self, source: Source) -> ByHeadMemory:
        """See Seq2SeqBackend.encode; a function that runs cannot be stopped."""
        engine = self._engine
        if engine is None:
            raise BackendError("the model was closed")
        source.check(self._spec)
        assert self._spec.source is not None  # checked just now  # noqa: S101
        positions, names = source.positions(self._spec.source), self._variant.step
        count = len(positions)
        rows, function = next(each for each in self._functions.items() if each[0] >= count)
        inputs: dict[str, Array] = {str(names.positions): filled(positions, rows, np.int32)}
        if source.features is not None:  # as many as the function takes
            inputs[str(names.features)] = np.ascontiguousarray(source.features, self._real)
        if source.tokens is not None:
            inputs[names.tokens] = filled(source.tokens, rows, np.int32)
        if names.source is not None:
            inputs[names.source] = source_bias(count, rows, self._real)
        found = engine.run(function, inputs, None)
        layers = []
        for layer in range(self._spec.num_layers):
            patterns = (self._layout.present_key, self._layout.present_value)
            key, value = (self._kept(found[each.format(layer=layer)], count) for each in patterns)
            layers.append((key, value))
        return ByHeadMemory(tuple(layers), count)

    def _kept(self, found: Array, rows: int) -> Array:
        """Rows of a memory, in as many as the target reads."""
        heads, _, width = found.shape
        kept = np.zeros((heads, self._variant.capacity, width), self._real)
        kept[:, :rows] = found[:, :rows]
        return kept

    def close(self) -> None:
        """Release the package."""
        self._engine = None


def memory_layout(variant: Variant) -> RowsLayout:
    """How a package calls the tensors of a memory.

    Raises:
        BundleError: it has one of another flavour, or none.
    """
    if not isinstance(variant.memory, RowsLayout):
        raise BundleError(f"{variant.model} has no memory of 'rows'; export the model again")
    return variant.memory


def memory_inputs(variant: Variant, memory: Memory | None, real: Any) -> dict[str, Array]:
    """What every step of a target is fed of its memory; nothing in a model without an encoder.

    Raises:
        BackendError: another backend made it.
    """
    if variant.memory is None:
        return {}
    layout = memory_layout(variant)
    if not isinstance(memory, ByHeadMemory):
        raise BackendError(f"this backend needs its own memories, not {type(memory).__name__}")
    inputs: dict[str, Array] = {}
    for layer, arrays in enumerate(memory.layers):
        for name, array in zip((layout.past_key, layout.past_value), arrays, strict=True):
            inputs[name.format(layer=layer)] = array
    if variant.step.source is not None:
        inputs[variant.step.source] = source_bias(memory.rows, memory.slots, real)
    return inputs


def source_bias(rows: int, slots: int, real: Any) -> Array:
    """What is added to scores of a memory with so many rows: [1, slots]."""
    bias = np.full((1, slots), HIDDEN, real)
    bias[:, :rows] = 0
    return bias


def filled(values: Array, rows: int, dtype: Any) -> Array:
    """In another type, with zeros up to `rows`."""
    found = np.zeros((rows, *values.shape[1:]), dtype)
    found[: len(values)] = values
    return found
