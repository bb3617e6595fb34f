"""ONNX Runtime on the CPU: weights mapped from the bundle, caches bound in place.

A cache's buffers are bound once as the past and as the present of every layer, so a step writes
its own rows and copies nothing else. They are bound again when the number of visible slots passes
a multiple of the alignment, or when the cache grew.
"""

from __future__ import annotations

import platform
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, BundleError
from quickdraft.kvcache.base import KvCache
from quickdraft.kvcache.contiguous import ContiguousCache, align_slots
from quickdraft.manifest import SlotsLayout, Variant
from quickdraft.runtime.backends import ort_session
from quickdraft.runtime.backends.base import (
    CancelToken,
    StepOutput,
    Trees,
    refuse_kv_types,
)
from quickdraft.runtime.backends.step_inputs import attention_bias, check_step, positions
from quickdraft.types import Guarantee, ModelSpec


class _State(ort_session.Feeds):
    """What is bound for one cache, and the memory it was bound to."""

    def __init__(self, session: Any) -> None:
        self.bound = ort_session.Bound(session)
        super().__init__(self.bound)
        self.version = -1
        self.slots = -1


class OnnxRuntimeBackend:
    """A Backend over one InferenceSession, shared by all conversations."""

    name = "onnxruntime"
    top = 0
    isa = None
    kv_type = "f32"
    trees: Trees = "rounded"

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        variant: Variant,
        threads: int | None = None,
        kv_cache: str | None = None,
    ) -> None:
        """Load the variant. threads: of one step; None means one per physical core.

        Raises:
            OptionError: kv_cache is not f32. MissingExtra: onnxruntime is not installed.
            BackendError: onnxruntime cannot load the model.
            BundleError: the graph's inputs or outputs are not those of the manifest.
        """
        refuse_kv_types(self.name, kv_cache)
        options = ort_session.options(threads)
        if not isinstance(variant.cache, SlotsLayout) or variant.step.slots is None:
            raise BundleError(
                f"{variant.model} takes a cache of {variant.cache.kind!r}, and this backend "
                "has one of 'slots'; use the backend of its flavour"
            )
        self.spec = spec
        self.flavour = variant.flavour
        # That a row's bits do not depend on the others was tested on x86-64 kernels only.
        proven = platform.machine().lower() in ("x86_64", "amd64")
        self.guarantee: Guarantee = variant.guarantee if proven else "same_distribution"
        self._step = variant.step
        self._slots = variant.step.slots
        self._layout = variant.cache
        self._session: Any = ort_session.open_session(folder / variant.model, options)
        _check_names(self._session, spec, variant, self._layout)
        self._states: weakref.WeakKeyDictionary[ContiguousCache, _State] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = threading.Lock()

    def new_cache(self) -> ContiguousCache:
        """An empty cache that fits this backend."""
        return ContiguousCache(self.spec)

    def step(
        self,
        tree: Tree,
        cache: KvCache,
        rows: NDArray[np.int64] | None = None,
        cancel: CancelToken | None = None,
        *,
        full_logits: bool = True,
    ) -> StepOutput:
        """See Backend.step; logits are always full."""
        session = self._session  # `close` may come from another thread; a step that runs ends
        if session is None:
            raise BackendError("the model was closed")
        if not isinstance(cache, ContiguousCache):
            raise BackendError(f"this backend needs its own caches, not {type(cache).__name__}")
        if cancel is not None:
            cancel.check()
        wanted = np.arange(len(tree), dtype=np.int64) if rows is None else rows
        length = cache.length
        check_step(tree, length, self.spec)
        cache.stage(len(tree))
        try:
            output = self._run(session, tree, cache, wanted, cancel)
        except BaseException:
            cache.truncate(length)
            raise
        return output

    def _run(
        self,
        session: Any,
        tree: Tree,
        cache: ContiguousCache,
        rows: NDArray[np.int64],
        cancel: CancelToken | None,
    ) -> StepOutput:
        n, length, names = len(tree), cache.length, self._step
        slots = align_slots(length + n)
        state = self._bind_cache(session, cache, slots)
        feeds: dict[str, NDArray[Any]] = {
            names.tokens: tree.tokens,
            names.positions: positions(tree, length),
            self._slots: np.arange(length, length + n),
            str(names.output_rows): rows,
        }
        for window, name in names.biases.items():
            feeds[name] = attention_bias(tree, length, slots, window)
        state.feed(feeds)
        logits = state.result(str(names.logits), (len(rows), self.spec.vocab_size))
        width = self.spec.hidden_size
        hidden = {
            layer: state.result(name, (n, width)) for layer, name in names.hidden_states.items()
        }
        state.bound.run(cancel)
        return StepOutput(logits, hidden)

    def _bind_cache(self, session: Any, cache: ContiguousCache, slots: int) -> _State:
        with self._lock:
            state = self._states.get(cache)
            if state is None:
                state = self._states[cache] = _State(session)
        if (state.version, state.slots) != (cache.version, slots):
            layout = self._layout
            for layer in range(self.spec.num_layers):
                key, value = cache.layer(layer)
                for array, past, present in (
                    (key, layout.past_key, layout.present_key),
                    (value, layout.past_value, layout.present_value),
                ):
                    names = past.format(layer=layer), present.format(layer=layer)
                    state.bound.in_place(*names, array[:slots])
            state.version, state.slots = cache.version, slots
        return state

    def close(self) -> None:
        """Release the session."""
        self._session = None
        with self._lock:
            self._states.clear()


def _check_names(session: Any, spec: ModelSpec, variant: Variant, cache: SlotsLayout) -> None:
    step = variant.step

    def layers(*patterns: str) -> set[str]:
        return {p.format(layer=layer) for p in patterns for layer in range(spec.num_layers)}

    inputs = {step.tokens, step.positions, str(step.slots), str(step.output_rows)}
    inputs |= set(step.biases.values())
    outputs = {str(step.logits), *step.hidden_states.values()}
    inputs |= layers(cache.past_key, cache.past_value)
    outputs |= layers(cache.present_key, cache.present_value)
    ort_session.check_names(variant.model, session, inputs, outputs)
