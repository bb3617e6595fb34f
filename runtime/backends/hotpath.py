"""Our own kernels inside ONNX Runtime: weights mapped in their layout, one cache buffer in place.

A step of a small model takes a few milliseconds, so what Python does in it is kept to filling in a
few small arrays: all memory of a step shape is allocated and bound once, and used again.
"""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quickdraft.device_profiles.machine import physical_cores, usable_processors
from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, BundleError
from quickdraft.kvcache.base import KvCache
from quickdraft.kvcache.blocked import KV_TYPES, BlockedCache, check_kv_type
from quickdraft.kvcache.memory import Memory, Source
from quickdraft.manifest import BlocksLayout, Variant
from quickdraft.runtime import native
from quickdraft.runtime.backends import ort_session
from quickdraft.runtime.backends.base import CancelToken, StepOutput, TopTokens, Trees
from quickdraft.runtime.backends.hotpath_memory import BlockedMemory, HotpathEncoder, bind_memory
from quickdraft.runtime.backends.step_inputs import (
    ancestors,
    check_features,
    check_memory,
    check_step,
    make_room,
)
from quickdraft.types import ModelSpec

OLDEST_ORT = (1, 24)
"""The first onnxruntime whose interface of custom ops has all that ours use."""

THREADS_KEY = "quickdraft.threads"
"""The session option that says how many threads our ops run on; register.cpp reads it."""

MAX_FRAMES = 32
"""Step shapes whose memory a cache keeps."""

DEPTHS = 16
"""Depths of a growing tree are rounded up to a multiple of these."""


class HotpathBackend:
    """A Backend over one InferenceSession with our ops, shared by all conversations."""

    name = "hotpath"
    device = "CPU"
    trees: Trees = "exact"

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        variant: Variant,
        threads: int | None = None,
        kv_cache: str | None = None,
        vocab_size: int | None = None,
        encoder: Variant | None = None,
    ) -> None:
        """Load the variant. threads: of one step; None means one per physical core. kv_cache: the
        type of keys and values, f16 (None), f32 or int8. vocab_size: of the tokens that a part with
        a token map reads. encoder: that of an encoder-decoder model.

        Raises:
            OptionError: an unknown type. MissingExtra: onnxruntime is not installed.
            BackendError: the native library is missing or does not fit, or the model cannot be
                loaded. BundleError: the graph's inputs or outputs are not those of the manifest.
        """
        self.kv_type = kv_cache or "f16"
        check_kv_type(self.kv_type)
        if not isinstance(variant.cache, BlocksLayout):
            raise BundleError(
                f"{variant.model} takes a cache of {variant.cache.kind!r}, and this backend "
                "has one of 'blocks'; use the backend of its flavour"
            )
        options = session_options(threads)
        self.isa: str | None = native.isa()
        self.spec = spec
        self._vocab_size = vocab_size
        self.flavour = variant.flavour
        self.guarantee = variant.guarantee
        self.top = variant.step.top
        self._session: Any = ort_session.open_session(folder / variant.model, options)
        check_names(self._session, variant)
        self._variant = variant
        self._layout = variant.cache
        self._encoder: HotpathEncoder | None = None
        if encoder is not None:
            self._encoder = HotpathEncoder(folder, spec, encoder, self.kv_type, options)
        self._states: weakref.WeakKeyDictionary[BlockedCache, _State] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def encode(self, source: Source, cancel: CancelToken | None = None) -> BlockedMemory:
        """See Seq2SeqBackend.encode."""
        if self._encoder is None:
            source.check(self.spec)  # says that there is no encoder
            raise BackendError("this backend was opened without the encoder of its model")
        return self._encoder.encode(source, cancel)

    def new_cache(self, memory: Memory | None = None) -> BlockedCache:
        """An empty cache that fits this backend; over a memory in an encoder-decoder model."""
        cache = BlockedCache(self.spec, self.kv_type, move=_move_rows)
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
        """See HeadBackend.step."""
        wanted = _Wanted(rows, full_logits, features)
        return self._step(tree, cache, 0, wanted, cancel)

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
        """See GrowingBackend.grow."""
        return self._step(tree, cache, staged, _Wanted(rows, full_logits), cancel)

    def _step(
        self, tree: Tree, cache: KvCache, staged: int, wanted: _Wanted, cancel: CancelToken | None
    ) -> StepOutput:
        """Run the nodes from number `staged` on."""
        session = self._session  # `close` may come from another thread; a step that runs ends
        if session is None:
            raise BackendError("the model was closed")
        if not isinstance(cache, BlockedCache):
            raise BackendError(f"this backend needs its own caches, not {type(cache).__name__}")
        check_memory(self._variant, cache.memory)
        if cancel is not None:
            cancel.check()
        length = cache.length
        check_step(tree, length, self.spec, self._vocab_size)
        count = len(tree) - staged
        check_features(self._variant, count, wanted.features)
        make_room(cache, count, staged)
        try:
            depths = 0 if tree.is_chain and not staged else int(tree.depth.max()) + 1
            if staged:  # it gets deeper with every step, and shapes are to be few
                depths = -(-depths // DEPTHS) * DEPTHS
            rows = 0 if wanted.rows is None else len(wanted.rows)
            shape = _Shape(count, depths, rows, wanted.full_logits)
            frame = self._frame(session, cache, shape)
            frame.fill(tree, length, staged, wanted)
            frame.bound.run(cancel)
        except BaseException:
            cache.truncate(length)
            raise
        return frame.output

    def _frame(self, session: Any, cache: BlockedCache, shape: _Shape) -> _Frame:
        with self._lock:
            state = self._states.get(cache)
            if state is None:
                state = self._states[cache] = _State()
        if state.version != cache.version or len(state.frames) > MAX_FRAMES:
            state.frames.clear()
            state.version = cache.version
        frame = state.frames.get(shape)
        if frame is None:
            bound = ort_session.Bound(session)
            bound.in_place(self._layout.cache, self._layout.present, cache.buffer)
            if cache.memory is not None:
                bind_memory(bound, self._variant, cache.memory)
            frame = state.frames[shape] = _Frame(bound, shape, self._variant, self.spec, cache)
        return frame

    def close(self) -> None:
        """Release the sessions."""
        self._session = None
        if self._encoder is not None:
            self._encoder.close()
        with self._lock:
            self._states.clear()


class _Wanted(NamedTuple):
    """What a step is given besides its tree, and asked for: see HeadBackend.step."""

    rows: NDArray[np.int64] | None
    full_logits: bool
    features: NDArray[np.float32] | None = None


class _Shape(NamedTuple):
    """What the shapes of a step depend on. depths: 0 for a chain. wanted: rows, 0 for all."""

    rows: int
    depths: int
    wanted: int
    full_logits: bool


class _State:
    """What is bound for one cache, as long as its memory is the same."""

    def __init__(self) -> None:
        self.version = -1
        self.frames: dict[_Shape, _Frame] = {}


class _Frame:
    """Inputs and outputs of all steps of one shape over one cache."""

    def __init__(
        self,
        bound: ort_session.Bound,
        shape: _Shape,
        variant: Variant,
        spec: ModelSpec,
        cache: BlockedCache,
    ) -> None:
        self.bound = bound
        names = variant.step
        n, wanted = shape.rows, shape.wanted or shape.rows
        self._tokens = np.zeros(n, np.int64)
        self._positions = np.zeros(n, np.int64)
        self._ancestors = np.zeros((n, shape.depths), np.int32)
        self._rows = np.arange(wanted, dtype=np.int64)
        self._past = np.array([0, KV_TYPES[cache.kv_type], cache.capacity], np.int64)
        self._depth = np.arange(n, dtype=np.int64)
        # Kept here because a binding does not keep the memory it was given.
        self._full = np.array([shape.full_logits], np.int64)
        for name, array in (
            (names.tokens, self._tokens),
            (str(names.positions), self._positions),
            (names.ancestors, self._ancestors),
            (names.output_rows, self._rows),
            (names.past, self._past),
            (names.full_logits, self._full),
        ):
            bound.input(str(name), array)
        self._features = np.zeros((n, variant.features), np.float32)
        if names.features is not None:
            bound.input(names.features, self._features)

        def result(name: str | None, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
            array = np.zeros(shape, dtype)
            bound.output(str(name), array)
            return array

        top = TopTokens(
            result(names.top_values, (wanted, names.top), np.float32),
            result(names.top_ids, (wanted, names.top), np.int64),
            result(names.log_sum, (wanted,), np.float32),
        )
        hidden = {
            layer: result(name, (n, spec.hidden_size), np.float32)
            for layer, name in names.hidden_states.items()
        }
        logits = np.zeros((0, spec.vocab_size), np.float32)
        if shape.full_logits:
            logits = result(names.logits, (wanted, spec.vocab_size), np.float32)
        self.output = StepOutput(logits, hidden, top)

    def fill(self, tree: Tree, length: int, staged: int, wanted: _Wanted) -> None:
        """Write the inputs of a step over `length` committed rows, from node `staged` on."""
        self._tokens[:] = tree.tokens[staged:]
        if wanted.features is not None:
            self._features[:] = wanted.features
        self._past[0] = length
        if wanted.rows is not None:
            self._rows[:] = wanted.rows
        if self._ancestors.size:
            paths = ancestors(tree, staged)
            self._ancestors[:, : paths.shape[1]] = paths
            self._ancestors[:, paths.shape[1] :] = -1
            np.add(tree.depth[staged:], length, out=self._positions)
        else:
            np.add(self._depth, length, out=self._positions)


def session_options(threads: int | None) -> Any:
    """Options of a session that has our ops. threads: of one step; None means one per physical
    core. They are ours, see pool.cpp, and sessions that take turns share them; the runtime's are
    left where nobody knows how many cores there are.

    Raises:
        MissingExtra: onnxruntime is not installed.
        BackendError: it is too old, there is no native library, or the two do not fit.
    """
    ort = ort_session.require()
    if tuple(int(part) for part in ort.__version__.split(".")[:2]) < OLDEST_ORT:
        raise BackendError(
            f"onnxruntime {ort.__version__} is too old for the hotpath flavour; upgrade it: "
            f"pip install 'onnxruntime>={'.'.join(map(str, OLDEST_ORT))}'"
        )
    library = native.load()
    library.isa()  # a wrong QUICKDRAFT_ISA is named here, not among the problems of onnxruntime
    threads = default_threads() if threads is None else threads
    options = ort_session.options(None if threads is None else 1)
    if threads is not None:
        options.add_session_config_entry(THREADS_KEY, str(threads))
    # The graph is made of our own ops: there is nothing to optimise, only time to lose.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        options.register_custom_ops_library(str(library.path))
    except Exception as error:
        raise BackendError(
            f"onnxruntime {ort.__version__} does not take the ops of {library.path}: {error}; "
            "install another version of onnxruntime, or use a portable bundle"
        ) from error
    return options


def default_threads() -> int | None:
    """One per physical core that this process may use; None where that is unknown."""
    cores, usable = physical_cores(), usable_processors()
    return min(cores, usable) if cores and usable else None


def problem() -> str | None:
    """Why no hotpath variant can run here; None if it can.

    Raises:
        BackendError: QUICKDRAFT_LIBRARY names no file: a mistake, not a lack.
    """
    native.library_path()
    try:
        session_options(None)
    except BackendError as error:
        return str(error)
    return None


def _move_rows(cache: BlockedCache, source: NDArray[np.int64], target: NDArray[np.int64]) -> None:
    form = native.CacheForm(KV_TYPES[cache.kv_type], cache.capacity, cache.head_dim, cache.kv_heads)
    native.move_rows(cache.buffer, form, source, target)


def check_names(session: Any, variant: Variant) -> None:
    """Compare a graph with what the manifest promises of it.

    Raises:
        BundleError: they differ.
    """
    step = variant.step
    inputs = {step.tokens, step.positions, step.ancestors, step.past, step.features}
    inputs |= {step.output_rows, step.full_logits, step.target_past, step.source}
    if isinstance(variant.memory, BlocksLayout):
        inputs.add(variant.memory.cache)
    outputs = {step.logits, step.top_values, step.top_ids, step.log_sum}
    outputs |= set(step.hidden_states.values())
    for cache in (variant.cache, variant.target_cache):
        if isinstance(cache, BlocksLayout):
            inputs.add(cache.cache)
            outputs.add(cache.present)
    found = ({name for name in names if name is not None} for names in (inputs, outputs))
    ort_session.check_names(variant.model, session, *found)
