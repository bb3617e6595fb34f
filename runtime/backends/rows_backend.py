"""A backend over graphs that read a cache and give the rows of a step back, less its engine.

The cache is ours, in memory that the engine reads; a step gives its rows back and they are put
where they belong. A step that no graph is wide enough for runs in pieces: those before are rows of
the cache that a node sees only where they are its ancestors.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, BundleError
from quickdraft.kvcache.base import KvCache
from quickdraft.kvcache.by_head import ByHeadCache
from quickdraft.kvcache.memory import Memory, Source
from quickdraft.manifest import RowsLayout, Variant
from quickdraft.runtime.backends.base import CancelToken, StepOutput, Trees
from quickdraft.runtime.backends.rows_step import Graphs, Piece, Request, Runner, Step, pieces
from quickdraft.runtime.backends.step_inputs import (
    check_features,
    check_memory,
    check_step,
)
from quickdraft.types import Guarantee, ModelSpec

SPARE = 32
"""Slots of a static cache beyond the context it offers, for the nodes of a tree."""


class Encoder(Protocol):
    """Reads sources for the target of an encoder-decoder model."""

    def encode(self, source: Source, cancel: CancelToken | None = None) -> Memory:
        """See Seq2SeqBackend.encode."""

    def close(self) -> None:
        """Release it."""


class RowsBackend:
    """A Backend over loaded graphs, shared by all conversations; each has requests of its own.

    widths: rows of the graphs it has, () where one takes any number.
    """

    name: str
    top = 0
    isa = None
    kv_type = "f32"
    trees: Trees = "rounded"

    def __init__(
        self,
        spec: ModelSpec,
        variant: Variant,
        graphs: Graphs,
        vocab_size: int | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        """spec: see `offered`. vocab_size: of the tokens that a part with a token map reads."""
        self.spec = spec
        self.flavour = variant.flavour
        self.guarantee: Guarantee = variant.guarantee
        self.widths = tuple(sorted(variant.widths))
        self._vocab_size = vocab_size
        self._variant = variant
        self._runner: Runner | None = Runner(spec, variant, graphs)
        self._encoder = encoder
        self._requests: weakref.WeakKeyDictionary[ByHeadCache, dict[int, Request]] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = threading.Lock()

    def encode(self, source: Source, cancel: CancelToken | None = None) -> Memory:
        """See Seq2SeqBackend.encode."""
        if self._encoder is None:
            source.check(self.spec)  # says that there is no encoder
            raise BackendError("this backend was opened without the encoder of its model")
        return self._encoder.encode(source, cancel)

    def new_cache(self, memory: Memory | None = None) -> ByHeadCache:
        """An empty cache that fits this backend; over a memory in an encoder-decoder model."""
        if self._variant.capacity:
            cache = ByHeadCache(self.spec, self._variant.capacity, fixed=True)
        else:
            cache = ByHeadCache(self.spec)
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
        runner = self._runner  # `close` may come from another thread; a step that runs ends
        if runner is None:
            raise BackendError("the model was closed")
        if not isinstance(cache, ByHeadCache):
            raise BackendError(f"this backend needs its own caches, not {type(cache).__name__}")
        check_memory(self._variant, cache.memory)
        if cancel is not None:
            cancel.check()
        wanted = np.arange(len(tree), dtype=np.int64) if rows is None else rows
        check_step(tree, cache.length, self.spec, self._vocab_size)
        check_features(self._variant, len(tree), features)
        step = Step(tree, cache.length, wanted, features)
        cache.stage(len(tree))
        try:
            return self._run(runner, step, cache, cancel)
        except BaseException:
            cache.truncate(step.length)
            raise

    def _run(
        self, runner: Runner, step: Step, cache: ByHeadCache, cancel: CancelToken | None
    ) -> StepOutput:
        with self._lock:
            requests = self._requests.setdefault(cache, {})
        cut = list(pieces(len(step.tree), step.nodes, self.widths))
        if len(cut) == 1:
            return self._output(step, cut[0], runner.run(step, cut[0], cache, requests, cancel))
        n, spec = len(step.tree), self.spec
        logits = np.empty((len(step.wanted), spec.vocab_size), np.float32)
        names = self._variant.step.hidden_states
        hidden = {layer: np.empty((n, spec.hidden_size), np.float32) for layer in names}
        for piece in cut:
            if cancel is not None:
                cancel.check()
            found = self._output(step, piece, runner.run(step, piece, cache, requests, cancel))
            logits[step.inside(piece)] = found.logits
            for layer, states in found.hidden_states.items():
                hidden[layer][piece.start : piece.end] = states
        return StepOutput(logits, hidden)

    def _output(self, step: Step, piece: Piece, request: Request) -> StepOutput:
        """What a piece gave."""
        names, nodes = self._variant.step, piece.end - piece.start
        logits = request.result(names.logits)[: len(step.inside(piece))]
        hidden = {
            layer: request.result(name)[:nodes] for layer, name in names.hidden_states.items()
        }
        return StepOutput(logits, hidden)

    def close(self) -> None:
        """Release the graphs."""
        self._runner = None
        if self._encoder is not None:
            self._encoder.close()
        with self._lock:
            self._requests.clear()


def offered(spec: ModelSpec, variant: Variant, encoder: Variant | None) -> ModelSpec:
    """The facts of a model as a variant has them: a static cache may hold less than the model, and
    a static encoder may read less.

    Raises:
        BundleError: it holds nothing, or its cache is of another kind.
    """
    if not isinstance(variant.cache, RowsLayout):
        raise BundleError(
            f"{variant.model} takes a cache of {variant.cache.kind!r}, and this backend has one of "
            "'rows'; use the backend of its flavour"
        )
    if not variant.capacity:
        return spec
    if variant.capacity <= SPARE:
        raise BundleError(f"{variant.model} has {variant.capacity} slots, which is too few")
    source = spec.source
    if source is not None and encoder is not None and not source.fixed:
        source = replace(source, length=min(source.length, encoder.capacity))
    length = min(spec.context_length, variant.capacity - SPARE)
    return replace(spec, context_length=length, source=source)
