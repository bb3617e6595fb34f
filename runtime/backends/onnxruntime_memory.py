"""Encoders of the portable flavour, and the memories that they put out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import BackendError, BundleError
from quickdraft.kvcache.memory import Memory, RowMemory, Source
from quickdraft.manifest import SlotsLayout, Variant
from quickdraft.runtime.backends import ort_session
from quickdraft.runtime.backends.base import CancelToken
from quickdraft.types import ModelSpec


class OnnxRuntimeEncoder:
    """Reads sources over one InferenceSession."""

    def __init__(self, session: Any, spec: ModelSpec, variant: Variant) -> None:
        """session: of the encoder `variant` for the target `spec`.

        Raises:
            BundleError: the graph's inputs or outputs are not those of the manifest.
        """
        self._session = session
        self._spec = spec
        self._step = variant.step
        layout = memory_layout(variant)
        self._outputs = [
            (layout.present_key.format(layer=layer), layout.present_value.format(layer=layer))
            for layer in range(spec.num_layers)
        ]
        inputs = {self._step.features or self._step.tokens, str(self._step.positions)}
        outputs = {name for names in self._outputs for name in names}
        ort_session.check_names(variant.model, session, inputs, outputs)

    def encode(self, source: Source, cancel: CancelToken | None = None) -> Memory:
        """See Seq2SeqBackend.encode."""
        session = self._session
        if session is None:
            raise BackendError("the model was closed")
        source.check(self._spec)
        assert self._spec.source is not None  # checked just now  # noqa: S101
        step, bound = self._step, ort_session.Bound(session)
        # Kept here because a binding does not keep the memory that it was given.
        kept: dict[str, NDArray[Any]] = {str(step.positions): source.positions(self._spec.source)}
        if source.features is not None:
            kept[str(step.features)] = np.ascontiguousarray(source.features, np.float32)
        if source.tokens is not None:
            kept[step.tokens] = np.ascontiguousarray(source.tokens, np.int64)
        for name, array in kept.items():
            bound.input(name, array)
        rows, layers = self._spec.source.rows(len(source)), []
        for names, heads in zip(self._outputs, self._spec.num_kv_heads, strict=True):
            shape = rows, heads, self._spec.head_dim
            layer = np.empty(shape, np.float32), np.empty(shape, np.float32)
            for name, array in zip(names, layer, strict=True):
                bound.output(name, array)
            layers.append(layer)
        bound.run(cancel)
        return RowMemory(tuple(layers))

    def close(self) -> None:
        """Release the session."""
        self._session = None


def memory_layout(variant: Variant) -> SlotsLayout:
    """How a graph calls the tensors of a memory.

    Raises:
        BundleError: it has one of another flavour, or none.
    """
    if not isinstance(variant.memory, SlotsLayout):
        raise BundleError(f"{variant.model} has no memory of 'slots'; export the model again")
    return variant.memory


def memory_inputs(variant: Variant, spec: ModelSpec) -> dict[int, tuple[str, str]]:
    """The target's inputs of keys and values by layer; empty in a model without an encoder."""
    if variant.memory is None:
        return {}
    layout = memory_layout(variant)
    return {
        layer: (layout.past_key.format(layer=layer), layout.past_value.format(layer=layer))
        for layer in range(spec.num_layers)
    }


def bind_memory(
    bound: ort_session.Bound, variant: Variant, spec: ModelSpec, memory: Memory | None
) -> None:
    """Let the steps of a cache read its memory.

    Raises:
        BackendError: another backend made it.
    """
    for layer, names in memory_inputs(variant, spec).items():
        if not isinstance(memory, RowMemory):
            raise BackendError(f"this backend needs its own memories, not {type(memory).__name__}")
        for name, array in zip(names, memory.layer(layer), strict=True):
            bound.input(name, array)
