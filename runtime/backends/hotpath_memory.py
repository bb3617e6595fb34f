"""Encoders of the hotpath flavour, and the memories that they fill."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import BackendError, BundleError
from quickdraft.kvcache.blocked import KV_TYPES, BlockedCache
from quickdraft.kvcache.memory import Layer, Memory, Source
from quickdraft.manifest import BlocksLayout, Variant
from quickdraft.runtime.backends import ort_session
from quickdraft.runtime.backends.base import CancelToken
from quickdraft.types import ModelSpec


@dataclass(frozen=True, eq=False)
class BlockedMemory:
    """A Memory laid out as a cache of blocks, all of whose rows are committed. facts: what the ops
    are told of it."""

    cache: BlockedCache
    facts: NDArray[np.int64]

    @classmethod
    def over(cls, cache: BlockedCache) -> BlockedMemory:
        """From a cache that is not to change any more."""
        cache.buffer.setflags(write=False)
        return cls(cache, _facts(cache))

    @property
    def rows(self) -> int:
        """Rows of the memory."""
        return self.cache.length

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.cache.nbytes

    def layer(self, index: int) -> Layer:
        """Keys and values of one layer, decoded."""
        keys, values = self.cache.layer(index)
        return keys[: self.rows], values[: self.rows]


class HotpathEncoder:
    """Reads sources over one InferenceSession with our ops."""

    def __init__(
        self, folder: Path, spec: ModelSpec, variant: Variant, kv_type: str, options: Any
    ) -> None:
        """Load the encoder `variant` for the target `spec`. kv_type: of memories. options: of a
        session that has our ops.

        Raises:
            BackendError: onnxruntime cannot load the model. BundleError: the graph's inputs or
                outputs are not those of the manifest.
        """
        self._spec = spec
        self._kv_type = kv_type
        self._variant = variant
        self._layout = memory_layout(variant)
        self._session: Any = ort_session.open_session(folder / variant.model, options)
        step = variant.step
        inputs = {step.features or step.tokens, str(step.positions), str(step.source)}
        inputs.add(self._layout.cache)
        ort_session.check_names(variant.model, self._session, inputs, {self._layout.present})

    def encode(self, source: Source, cancel: CancelToken | None = None) -> BlockedMemory:
        """See Seq2SeqBackend.encode."""
        session = self._session
        if session is None:
            raise BackendError("the model was closed")
        source.check(self._spec)
        assert self._spec.source is not None  # checked just now  # noqa: S101
        rows = self._spec.source.rows(len(source))
        # How long a source may be has nothing to do with how long an answer may be.
        cache = BlockedCache(replace(self._spec, context_length=rows), self._kv_type, rows)
        cache.stage(rows)
        step, bound = self._variant.step, ort_session.Bound(session)
        kept = {str(step.positions): np.arange(rows), str(step.source): _facts(cache)}
        if source.features is None:
            assert source.tokens is not None  # it is one or the other  # noqa: S101
            kept[step.tokens] = np.ascontiguousarray(source.tokens, np.int64)
        else:
            kept[str(step.features)] = np.ascontiguousarray(source.features, np.float32)
        for name, array in kept.items():  # a binding does not keep the memory that it was given
            bound.input(name, array)
        bound.in_place(self._layout.cache, self._layout.present, cache.buffer)
        bound.run(cancel)
        cache.commit(range(rows))
        return BlockedMemory.over(cache)

    def close(self) -> None:
        """Release the session."""
        self._session = None


def bind_memory(bound: ort_session.Bound, variant: Variant, memory: Memory) -> None:
    """Let a step of the target read a memory.

    Raises:
        BackendError: another backend made it.
    """
    if not isinstance(memory, BlockedMemory):
        raise BackendError(f"this backend needs its own memories, not {type(memory).__name__}")
    bound.input(memory_layout(variant).cache, memory.cache.buffer)
    bound.input(str(variant.step.source), memory.facts)


def memory_layout(variant: Variant) -> BlocksLayout:
    """How a memory lies in its buffer.

    Raises:
        BundleError: it is one of another flavour, or none.
    """
    if not isinstance(variant.memory, BlocksLayout):
        raise BundleError(f"{variant.model} has no memory of 'blocks'; export the model again")
    return variant.memory


def _facts(cache: BlockedCache) -> NDArray[np.int64]:
    """Of a memory: rows that are filled, KV type, slots."""
    return np.array([cache.length, KV_TYPES[cache.kv_type], cache.capacity], np.int64)
