"""ONNX Runtime on the CPU: weights mapped from the bundle, caches bound in place.

A cache's buffers are bound once as the past and as the present of every layer, so a step writes
its own rows and copies nothing else. They are bound again when the number of visible slots passes
a multiple of the alignment, or when the cache grew.
"""

from __future__ import annotations

import platform
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, BundleError, Cancelled, MissingExtra
from quickdraft.kvcache.base import KvCache
from quickdraft.kvcache.contiguous import ContiguousCache, align_slots
from quickdraft.manifest import SlotsLayout, Variant
from quickdraft.runtime.backends.base import CancelToken, StepOutput
from quickdraft.runtime.backends.step_inputs import attention_bias, check_step, positions
from quickdraft.types import Guarantee, ModelSpec

try:
    import onnxruntime as ort
except ImportError:  # reported when a backend is opened, with the extra to install
    ort = None

_ERRORS_ONLY = 3


@dataclass
class _Bound:
    """An IOBinding of one cache, and what it was bound for."""

    binding: Any
    options: Any
    version: int = -1
    slots: int = -1
    inputs: dict[str, NDArray[Any]] = field(default_factory=dict)
    outputs: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def feed(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Give a step its inputs; arrays of the shapes of the last step reuse its memory."""
        for name, array in feeds.items():
            known = self.inputs.get(name)
            if known is not None and known.shape == array.shape:
                np.copyto(known, array)
            else:
                self.inputs[name] = array = array.copy()
                self.binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))

    def result(self, name: str, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Where the step puts an output; memory of the same shape is used again.

        Binding fresh memory took 60 us of a step of SmolLM2, page faults not counted.
        """
        known = self.outputs.get(name)
        if known is None or known.shape != shape:
            known = self.outputs[name] = np.empty(shape, np.float32)
            self.binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(known))
        return known


class OnnxRuntimeBackend:
    """A Backend over one InferenceSession, shared by all conversations."""

    name = "onnxruntime"
    top = 0
    isa = None

    def __init__(
        self, folder: Path, spec: ModelSpec, variant: Variant, threads: int | None = None
    ) -> None:
        """Load the variant. threads: of one step; None means one per physical core.

        Raises:
            MissingExtra: onnxruntime is not installed.
            BackendError: onnxruntime cannot load the model.
            BundleError: the graph's inputs or outputs are not those of the manifest.
        """
        if ort is None:
            raise MissingExtra("onnxruntime", "onnx")
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
        self._session: Any = _open(folder / variant.model, threads)
        _check_names(self._session, spec, variant, self._layout)
        self._bound: weakref.WeakKeyDictionary[ContiguousCache, _Bound] = (
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
        bound = self._bind_cache(session, cache, slots)
        feeds: dict[str, NDArray[Any]] = {
            names.tokens: tree.tokens,
            names.positions: positions(tree, length),
            self._slots: np.arange(length, length + n),
            names.output_rows: rows,
        }
        for window, name in names.biases.items():
            feeds[name] = attention_bias(tree, length, slots, window)
        bound.feed(feeds)
        logits = bound.result(names.logits, (len(rows), self.spec.vocab_size))
        width = self.spec.hidden_size
        hidden = {
            layer: bound.result(name, (n, width)) for layer, name in names.hidden_states.items()
        }
        self._execute(session, bound, cancel)
        return StepOutput(logits, hidden)

    def _bind_cache(self, session: Any, cache: ContiguousCache, slots: int) -> _Bound:
        with self._lock:
            bound = self._bound.get(cache)
            if bound is None:
                bound = self._bound[cache] = _Bound(session.io_binding(), _run_options())
        if (bound.version, bound.slots) != (cache.version, slots):
            layout = self._layout
            for layer in range(self.spec.num_layers):
                key, value = cache.layer(layer)
                for array, past, present in (
                    (key, layout.past_key, layout.present_key),
                    (value, layout.past_value, layout.present_value),
                ):
                    shared = ort.OrtValue.ortvalue_from_numpy(array[:slots])
                    bound.binding.bind_ortvalue_input(past.format(layer=layer), shared)
                    bound.binding.bind_ortvalue_output(present.format(layer=layer), shared)
            bound.version, bound.slots = cache.version, slots
        return bound

    def _execute(self, session: Any, bound: _Bound, cancel: CancelToken | None) -> None:
        options = bound.options

        def stop() -> None:
            options.terminate = True

        if cancel is not None:
            cancel.attach(stop)
        try:
            session.run_with_iobinding(bound.binding, options)
        except Exception as error:
            if cancel is not None and cancel.cancelled:
                raise Cancelled("stopped on request") from None
            raise BackendError(f"onnxruntime failed in a step: {error}") from error
        finally:
            if cancel is not None:
                cancel.attach(None)
            if options.terminate:  # it stays set, and would stop every later step
                bound.options = _run_options()

    def close(self) -> None:
        """Release the session."""
        self._session = None
        with self._lock:
            self._bound.clear()


def _check_names(session: Any, spec: ModelSpec, variant: Variant, cache: SlotsLayout) -> None:
    step = variant.step

    def layers(*patterns: str) -> set[str]:
        return {p.format(layer=layer) for p in patterns for layer in range(spec.num_layers)}

    inputs = {step.tokens, step.positions, str(step.slots), step.output_rows, *step.biases.values()}
    outputs = {step.logits, *step.hidden_states.values()}
    for kind, promised, found in (
        ("input", inputs | layers(cache.past_key, cache.past_value), session.get_inputs()),
        ("output", outputs | layers(cache.present_key, cache.present_value), session.get_outputs()),
    ):
        differing = sorted(promised ^ {value.name for value in found})
        if differing:
            raise BundleError(
                f"{variant.model}: manifest and graph disagree about the {kind} {differing[0]!r}; "
                "export the model again"
            )


def _run_options() -> Any:
    options = ort.RunOptions()
    options.log_severity_level = _ERRORS_ONLY + 1
    # Unset, this entry costs an exception per step inside onnxruntime's Python layer.
    options.add_run_config_entry("gpu_graph_id", "0")
    return options


def _open(model: Path, threads: int | None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    load: Callable[..., Any] = ort.InferenceSession
    try:
        return load(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BackendError(
            f"onnxruntime {ort.__version__} cannot load {model.name}: {error}"
        ) from error
