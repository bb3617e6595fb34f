"""ONNX Runtime on the CPU: weights mapped from the bundle, caches bound in place.

A cache's buffers are bound once as the past and as the present of every layer, so a step writes
its own rows and copies nothing else. They are bound again when the number of visible slots passes
a multiple of the alignment, or when the cache grew.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.device_profiles import machine
from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, BundleError
from quickdraft.kvcache.base import KvCache
from quickdraft.kvcache.contiguous import ContiguousCache, align_slots
from quickdraft.kvcache.memory import Memory, Source
from quickdraft.manifest import SlotsLayout, StepNames, Variant
from quickdraft.runtime.backends import ort_session, providers
from quickdraft.runtime.backends.base import (
    CancelToken,
    StepOutput,
    Trees,
    refuse_kv_types,
)
from quickdraft.runtime.backends.onnxruntime_memory import (
    OnnxRuntimeEncoder,
    bind_memory,
    memory_inputs,
)
from quickdraft.runtime.backends.step_inputs import (
    attention_bias,
    check_features,
    check_memory,
    check_step,
    distances,
    make_room,
    positions,
)
from quickdraft.types import Guarantee, ModelSpec


class State(ort_session.Feeds):
    """What is bound for one cache, and the memory it was bound to."""

    def __init__(self, session: Any) -> None:
        self.bound = ort_session.Bound(session)
        super().__init__(self.bound)
        self.version = -1
        self.slots = -1

    def bind(
        self, layout: SlotsLayout, cache: ContiguousCache, layers: Iterable[int], slots: int
    ) -> None:
        """Bind the first slots of some layers of a cache, written in place."""
        for layer in layers:
            key, value = cache.layer(layer)
            for array, past, present in (
                (key, layout.past_key, layout.present_key),
                (value, layout.past_value, layout.present_value),
            ):
                names = past.format(layer=layer), present.format(layer=layer)
                self.bound.in_place(*names, array[:slots])


CPU = "CPU"


class OnnxRuntimeBackend:
    """A Backend over one InferenceSession, shared by all conversations.

    degraded: what of it does not run on the device, None if all does.
    """

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
        vocab_size: int | None = None,
        device: str = CPU,
        encoder: Variant | None = None,
    ) -> None:
        """Load the variant. threads: of one step; None means one per physical core. vocab_size: of
        the tokens that a part with a token map reads. device: see `providers`. encoder: that of an
        encoder-decoder model.

        Raises:
            OptionError: kv_cache is not f32. MissingExtra: onnxruntime is not installed.
            DeviceError: the device is not there, or takes nothing of the graph.
            BackendError: onnxruntime cannot load the model.
            BundleError: the graph's inputs or outputs are not those of the manifest.
        """
        refuse_kv_types(self.name, kv_cache)
        options = ort_session.options(threads, beside=variant.spec is not None)
        named = providers.use(options, device)
        if not isinstance(variant.cache, SlotsLayout) or variant.step.slots is None:
            raise BundleError(
                f"{variant.model} takes a cache of {variant.cache.kind!r}, and this backend "
                "has one of 'slots'; use the backend of its flavour"
            )
        self.spec = spec
        self.device = device
        self._vocab_size = vocab_size
        self.flavour = variant.flavour
        # That a row's bits do not depend on the others was tested on x86-64 kernels only.
        proven = device == CPU and machine.architecture() == "x86_64"
        self.guarantee: Guarantee = variant.guarantee if proven else "same_distribution"
        self._variant = variant
        self._layout = variant.cache
        self._session: Any = ort_session.open_session(folder / variant.model, options, named)
        check_names(self._session, spec, variant)
        opened = [self._session]
        self._encoder: OnnxRuntimeEncoder | None = None
        if encoder is not None:
            opened.append(ort_session.open_session(folder / encoder.model, options, named))
            self._encoder = OnnxRuntimeEncoder(opened[-1], spec, encoder)
        self.degraded = providers.fallen_back(opened, device)
        self._states: weakref.WeakKeyDictionary[ContiguousCache, State] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = threading.Lock()

    def encode(self, source: Source, cancel: CancelToken | None = None) -> Memory:
        """See Seq2SeqBackend.encode."""
        if self._encoder is None:
            source.check(self.spec)  # says that there is no encoder
            raise BackendError("this backend was opened without the encoder of its model")
        return self._encoder.encode(source, cancel)

    def new_cache(self, memory: Memory | None = None) -> ContiguousCache:
        """An empty cache that fits this backend; over a memory in an encoder-decoder model."""
        cache = ContiguousCache(self.spec)
        cache.memory = memory
        return cache

    def step(
        self,
        tree: Tree,
        cache: KvCache,
        rows: NDArray[np.int64] | None = None,
        cancel: CancelToken | None = None,
        *,
        full_logits: bool = True,
        features: NDArray[np.float32] | None = None,
    ) -> StepOutput:
        """See HeadBackend.step; logits are always full."""
        return self._step(tree, cache, 0, rows, cancel, features)

    def grow(
        self,
        tree: Tree,
        cache: KvCache,
        staged: int,
        cancel: CancelToken | None = None,
        *,
        rows: NDArray[np.int64] | None = None,
        full_logits: bool = True,
    ) -> StepOutput:
        """See GrowingBackend.grow; logits are always full."""
        return self._step(tree, cache, staged, rows, cancel)

    def _step(
        self,
        tree: Tree,
        cache: KvCache,
        staged: int,
        rows: NDArray[np.int64] | None,
        cancel: CancelToken | None,
        features: NDArray[np.float32] | None = None,
    ) -> StepOutput:
        """Run the nodes from number `staged` on."""
        session = self._session  # `close` may come from another thread; a step that runs ends
        if session is None:
            raise BackendError("the model was closed")
        if not isinstance(cache, ContiguousCache):
            raise BackendError(f"this backend needs its own caches, not {type(cache).__name__}")
        check_memory(self._variant, cache.memory)
        if cancel is not None:
            cancel.check()
        count = len(tree) - staged
        wanted = np.arange(count, dtype=np.int64) if rows is None else rows
        length = cache.length
        check_step(tree, length, self.spec, self._vocab_size)
        check_features(self._variant, len(tree), features)
        make_room(cache, count, staged)
        try:
            state = self._bind_cache(session, cache, align_slots(length + len(tree)))
            feeds = step_feeds(self._variant.step, tree, length, staged)
            output = self._run(state, feeds, count, wanted, features)
            state.bound.run(cancel)
        except BaseException:
            cache.truncate(length)
            raise
        return output

    def _run(
        self,
        state: State,
        feeds: dict[str, NDArray[Any]],
        count: int,
        rows: NDArray[np.int64],
        features: NDArray[np.float32] | None,
    ) -> StepOutput:
        """Give a step of `count` nodes its inputs; what it will fill in."""
        names = self._variant.step
        state.feed(feeds)
        state.feed({str(names.output_rows): rows})
        if features is not None:
            state.feed({str(names.features): features})
        logits = state.result(str(names.logits), (len(rows), self.spec.vocab_size))
        shape = (count, self.spec.hidden_size)
        hidden = {layer: state.result(name, shape) for layer, name in names.hidden_states.items()}
        return StepOutput(logits, hidden)

    def _bind_cache(self, session: Any, cache: ContiguousCache, slots: int) -> State:
        with self._lock:
            state = self._states.get(cache)
            if state is None:
                state = self._states[cache] = State(session)
                bind_memory(state.bound, self._variant, self.spec, cache.memory)
        if (state.version, state.slots) != (cache.version, slots):
            state.bind(self._layout, cache, cached_layers(self.spec, self._variant), slots)
            state.version, state.slots = cache.version, slots
        return state

    def close(self) -> None:
        """Release the sessions."""
        self._session = None
        if self._encoder is not None:
            self._encoder.close()
        with self._lock:
            self._states.clear()


def cached_layers(spec: ModelSpec, variant: Variant) -> range:
    """Layers whose tensors a graph has: those of the spec, which must say one at least; none where
    it does not attend, and so has no bias."""
    return range(spec.num_layers if variant.step.biases else 0)


def step_feeds(
    names: StepNames, tree: Tree, length: int, staged: int = 0
) -> dict[str, NDArray[Any]]:
    """The inputs of every graph, for a step over `length` committed rows that runs the nodes from
    number `staged` on."""
    n = len(tree)
    feeds: dict[str, NDArray[Any]] = {
        names.tokens: tree.tokens[staged:],
        str(names.positions): positions(tree, length)[staged:],
        str(names.slots): np.arange(length + staged, length + n),
    }
    for window, name in names.biases.items():
        bias = attention_bias(tree, length, align_slots(length + n), window)
        feeds[name] = bias[staged:]
    if names.distances is not None:
        feeds[names.distances] = distances(tree, length, align_slots(length + n))[staged:]
    return feeds


def check_names(
    session: Any, spec: ModelSpec, variant: Variant, target: ModelSpec | None = None
) -> None:
    """Compare a graph with its manifest. target: facts of the model a predictor is for.

    Raises:
        BundleError: an input or output is missing, or one too many.
    """
    step = variant.step
    inputs = {step.tokens, step.positions, step.slots, step.output_rows, step.features}
    inputs |= {step.target_rows, step.distances, *step.biases.values()}
    inputs |= {name for names in memory_inputs(variant, spec).values() for name in names}
    outputs = {step.logits, *step.hidden_states.values()}
    caches = [(variant.cache, cached_layers(spec, variant))]
    if target is not None and variant.target_cache is not None:
        caches.append((variant.target_cache, range(target.num_layers)))
    for cache, layers in caches:
        assert isinstance(cache, SlotsLayout)  # checked on opening  # noqa: S101
        for layer in layers:
            inputs |= {name.format(layer=layer) for name in (cache.past_key, cache.past_value)}
            outputs |= {
                name.format(layer=layer) for name in (cache.present_key, cache.present_value)
            }
    named = ({name for name in names if name is not None} for names in (inputs, outputs))
    ort_session.check_names(variant.model, session, *named)
