"""Core ML: packages of fixed widths, whose keys and values are states of the engine.

A step is run by the narrowest function that holds it, filled up with rows that nobody sees; a
larger one in several, each of which sees the rows of the former ones as it sees any ancestor.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, BundleError, OptionError
from quickdraft.kvcache.base import KvCache
from quickdraft.kvcache.memory import Memory, Source
from quickdraft.kvcache.states import StateCache
from quickdraft.manifest import FixedStateLayout, StaticStep, Variant
from quickdraft.runtime.backends.base import CancelToken, StepOutput, Trees, refuse_kv_types
from quickdraft.runtime.backends.coreml_engine import UNITS, Engine, open_engine
from quickdraft.runtime.backends.coreml_memory import (
    HIDDEN,
    CoreMlEncoder,
    filled,
    memory_inputs,
)
from quickdraft.runtime.backends.step_inputs import (
    attention_bias,
    check_features,
    check_memory,
    check_step,
    distances,
    positions,
)
from quickdraft.types import Guarantee, ModelSpec

Array = NDArray[Any]


class States:
    """The states of one conversation, as StateMemory wants them."""

    def __init__(self, engine: Engine, layout: FixedStateLayout, handle: Any, nbytes: int) -> None:
        self.handle = handle
        self.slots = layout.slots
        self.nbytes = nbytes
        self._engine = engine
        self._layout = layout

    def read(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Keys and values of all layers."""
        return self._sum(self._layout.keys), self._sum(self._layout.values)

    def _sum(self, names: Sequence[str]) -> NDArray[np.float32]:
        parts = [self._engine.read(self.handle, name).astype(np.float32) for name in names]
        total: NDArray[np.float32] = np.stack(parts).sum(axis=0)
        return total

    def move(self, source: NDArray[np.int64], first: int) -> None:
        """Run the function that moves rows. It moves a fixed number; what is too much stays where
        it is, and a later run reads nothing that an earlier one wrote, as sources rise."""
        rows = self._layout.move_rows
        for done in range(0, len(source), rows):
            part = source[done : done + rows]
            places = np.arange(first + done, first + done + rows)
            places[: len(part)] = part
            inputs = {
                self._layout.source: places.astype(np.int32),
                "first_slot": np.array([first + done], np.int32),
            }
            self._engine.run(self._layout.move, inputs, self.handle)

    def copy(self) -> States:
        """States of the same content."""
        twin = States(self._engine, self._layout, self._engine.new_states(), self.nbytes)
        for name in (*self._layout.keys, *self._layout.values):
            self._engine.write(twin.handle, name, self._engine.read(self.handle, name))
        return twin


@dataclass(frozen=True)
class _Run:
    """Some nodes of a tree, run at once: first to end, in a function for at least as many."""

    first: int
    end: int
    function: StaticStep


class CoreMlBackend:
    """A Backend over one package. Steps of several conversations run one after another."""

    name = "coreml"
    top = 0
    isa = None
    kv_type = "f16"
    trees: Trees = "rounded"

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
        """Load the variant. device: see open_engine. vocab_size: of the tokens that a part with a
        token map reads. threads: Core ML chooses its own. encoder: that of an encoder-decoder
        model.

        Raises:
            OptionError: threads, another KV type or an unknown device are asked for.
            BackendError: Core ML is not here or cannot load the package.
            BundleError: the package is damaged, or not what the manifest says.
        """
        layout = variant.cache
        if not isinstance(layout, FixedStateLayout):
            raise BundleError(
                f"{variant.model} takes a cache of {layout.kind!r}, and Core ML packages have one "
                "of 'fixed_state'; use the backend of its flavour"
            )
        # What float16 rounds away has states of its own where float32 is computed.
        self.kv_type = "f32" if len(layout.keys) > 1 else "f16"
        self._real = np.float32 if self.kv_type == "f32" else np.float16
        _refuse_options(threads, kv_cache, self.kv_type)
        self.spec = _offered(spec, layout, encoder)
        self.flavour = variant.flavour
        self.guarantee: Guarantee = "same_distribution"
        self._vocab_size = vocab_size
        self._variant = variant
        self._layout = layout
        # Narrowest first, and of one width the one with most logits.
        self._steps = sorted(layout.steps, key=lambda step: (step.rows, -step.output_rows))
        functions = (*(step.name for step in layout.steps), layout.move)
        package = (folder / variant.model).parents[2]
        self.device = (device or UNITS[0]).upper()
        self._engine: Engine | None = open_engine(package, functions, device)
        self._encoder: CoreMlEncoder | None = None
        if encoder is not None:
            self._encoder = CoreMlEncoder(folder, self.spec, encoder, self._real, device)
        self._lock = threading.Lock()

    def encode(self, source: Source, cancel: CancelToken | None = None) -> Memory:
        """See Seq2SeqBackend.encode."""
        if self._encoder is None:
            source.check(self.spec)  # says that there is no encoder
            raise BackendError("this backend was opened without the encoder of its model")
        if cancel is not None:
            cancel.check()
        with self._lock:
            return self._encoder.encode(source)

    def new_cache(self, memory: Memory | None = None) -> StateCache:
        """An empty cache that fits this backend; over a memory in an encoder-decoder model."""
        layout, engine = self._layout, self._opened()
        heads = sum(self.spec.num_kv_heads)
        states = len(layout.keys) + len(layout.values)
        nbytes = states * heads * layout.slots * self.spec.head_dim * 2
        held = States(engine, layout, engine.new_states(), nbytes)
        # The last run of a step may be filled up, and still has to fit.
        spare = max(layout.move_rows, *(step.rows for step in layout.steps))
        cache = StateCache(self.spec, held, layout.slots - spare)
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
        engine = self._opened()
        if not isinstance(cache, StateCache) or not isinstance(cache.states, States):
            raise BackendError(f"this backend needs its own caches, not {type(cache).__name__}")
        length, n = cache.length, len(tree)
        check_step(tree, length, self.spec, self._vocab_size)
        check_features(self._variant, n, features)
        check_memory(self._variant, cache.memory)
        read = memory_inputs(self._variant, cache.memory, self._real)
        wanted = np.arange(n, dtype=np.int64) if rows is None else rows
        logits = np.empty((len(wanted), self.spec.vocab_size), np.float32)
        names = self._variant.step.hidden_states
        shape = (n, self.spec.hidden_size)
        hidden = {layer: np.empty(shape, np.float32) for layer in names}
        cache.stage(n)
        try:
            for run in self._runs(n, wanted):
                if cancel is not None:
                    cancel.check()
                here = np.flatnonzero((wanted >= run.first) & (wanted < run.end))
                inputs = read | self._inputs(tree, length, run, wanted[here], features)
                with self._lock:
                    found = engine.run(run.function.name, inputs, cache.states.handle)
                logits[here] = found[str(self._variant.step.logits)][: len(here)]
                for layer, name in names.items():
                    hidden[layer][run.first : run.end] = found[name][: run.end - run.first]
        except BaseException:
            cache.truncate(length)
            raise
        return StepOutput(logits, hidden)

    def _runs(self, n: int, wanted: NDArray[np.int64]) -> Iterator[_Run]:
        """Cut a step into runs: wide ones while few logits are wanted, then what fits best."""
        first = 0
        while first < n:
            left = n - first
            fitting = [
                _Run(first, min(n, first + step.rows), step)
                for step in self._steps
                if _asked(wanted, first, min(n, first + step.rows)) <= step.output_rows
            ]
            whole = [run for run in fitting if run.function.rows >= left]
            # Narrow functions put out all logits, so that one always fits.
            run = whole[0] if whole else fitting[-1]
            yield run
            first = run.end

    def _inputs(
        self,
        tree: Tree,
        length: int,
        run: _Run,
        wanted: NDArray[np.int64],
        features: NDArray[np.float32] | None,
    ) -> dict[str, Array]:
        """What a function is fed, filled up to its rows. Rows that fill up see every slot's content
        alike and are seen by none; their slots are written again before they are committed."""
        names, rows, count = self._variant.step, run.function.rows, run.end - run.first
        part = slice(run.first, run.end)
        where = positions(tree, length)[part]
        outputs = np.zeros(run.function.output_rows, np.int32)
        outputs[: len(wanted)] = wanted - run.first
        inputs: dict[str, Array] = {
            names.tokens: filled(tree.tokens[part], rows, np.int32),
            str(names.positions): filled(where, rows, np.int32),
            str(names.slots): np.array([length + run.first], np.int32),
            str(names.output_rows): outputs,
        }
        for window, name in names.biases.items():
            # Nodes before and after these are rows like any other: seen where they are ancestors.
            seen = attention_bias(tree, length, self._layout.slots, window)[part] == 0
            mask = np.full((rows, self._layout.slots), HIDDEN, self._real)
            mask[:count][seen] = 0
            inputs[name] = mask
        if names.distances is not None:
            places = distances(tree, length, self._layout.slots)[part]
            inputs[names.distances] = filled(places, rows, np.int32)
        if features is not None:
            inputs[str(names.features)] = filled(features[part], rows, self._real)
        return inputs

    def _opened(self) -> Engine:
        engine = self._engine  # `close` may come from another thread; a step that runs ends
        if engine is None:
            raise BackendError("the model was closed")
        return engine

    def close(self) -> None:
        """Release the package."""
        self._engine = None
        if self._encoder is not None:
            self._encoder.close()


def _offered(spec: ModelSpec, layout: FixedStateLayout, encoder: Variant | None) -> ModelSpec:
    """The facts of a model as a package has them: it may hold less, and read less."""
    source = spec.source
    if source is not None and encoder is not None and not source.fixed:
        source = replace(source, length=min(source.length, encoder.capacity))
    return replace(spec, context_length=min(spec.context_length, layout.length), source=source)


def _asked(wanted: NDArray[np.int64], first: int, end: int) -> int:
    return int(((wanted >= first) & (wanted < end)).sum())


def _refuse_options(threads: int | None, kv_cache: str | None, kv_type: str) -> None:
    if threads is not None:
        raise OptionError(
            f"Core ML chooses its threads itself and cannot be told to use {threads}; leave the "
            "option out"
        )
    if kv_cache not in (None, kv_type):
        refuse_kv_types("coreml", kv_cache)
