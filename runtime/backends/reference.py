"""The reference backend: interprets a recorded program with `quickdraft.numpy_ops`.

Slow and plain. It is the oracle of the other backends and the null device of the tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, OptionError
from quickdraft.kvcache.base import KvCache
from quickdraft.kvcache.contiguous import ContiguousCache, align_slots
from quickdraft.kvcache.memory import Memory, RowMemory, Source
from quickdraft.manifest import Variant
from quickdraft.runtime.backends.base import (
    CancelToken,
    StepOutput,
    Trees,
    refuse_kv_types,
)
from quickdraft.runtime.backends.reference_program import Caches, Program
from quickdraft.runtime.backends.step_inputs import (
    attention_bias,
    check_features,
    check_step,
    distances,
    make_room,
    positions,
)
from quickdraft.types import ModelSpec


class ReferenceBackend:
    """A Backend that computes in NumPy, float32, whatever the weight format."""

    name = "reference"
    top = 0
    device = "CPU"
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
        encoder: Variant | None = None,
    ) -> None:
        """Load the program and decode its weights. vocab_size: of the tokens that a part with a
        token map reads. encoder: of an encoder-decoder model.

        Raises:
            OptionError: threads were asked for; NumPy's are set by its own environment variables.
                Or kv_cache is not f32.
            BundleError: the files are damaged or not a program this version knows.
        """
        refuse_kv_types(self.name, kv_cache)
        if threads is not None:
            raise OptionError(
                f"the reference backend cannot be told to use {threads} threads; leave the "
                "option out, or set OPENBLAS_NUM_THREADS before starting"
            )
        self.spec = spec
        self._vocab_size = vocab_size
        self.flavour = variant.flavour
        self.guarantee = variant.guarantee
        self._variant = variant
        self._program: Program | None = Program.read(folder, variant)
        self._encoder = None if encoder is None else Program.read(folder, encoder)

    def new_cache(self, memory: Memory | None = None) -> ContiguousCache:
        """See Seq2SeqBackend.new_cache."""
        cache = ContiguousCache(self.spec)
        cache.memory = memory
        return cache

    def encode(self, source: Source, cancel: CancelToken | None = None) -> Memory:
        """See Seq2SeqBackend.encode."""
        source.check(self.spec)
        if self._program is None:
            raise BackendError("the model was closed")
        if self._encoder is None or self.spec.source is None:
            raise BackendError("the model was opened without its encoder")
        inputs: dict[str, NDArray[Any]] = {"positions": source.positions(self.spec.source)}
        if source.tokens is not None:
            inputs["tokens"] = source.tokens
        if source.features is not None:
            inputs["features"] = source.features
        staged = self._encoder.encode(inputs, cancel)
        return RowMemory.of_rows(self.spec, [staged[i] for i in range(self.spec.num_layers)])

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
        return self._run(tree, cache, 0, rows, cancel, features)

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
        return self._run(tree, cache, staged, rows, cancel)

    def _run(
        self,
        tree: Tree,
        cache: KvCache,
        staged: int,
        rows: NDArray[np.int64] | None,
        cancel: CancelToken | None,
        features: NDArray[np.float32] | None = None,
    ) -> StepOutput:
        """Run the nodes from number `staged` on."""
        program = self._program
        if program is None:
            raise BackendError("the model was closed")
        if not isinstance(cache, ContiguousCache):
            raise BackendError(f"this backend needs its own caches, not {type(cache).__name__}")
        if cancel is not None:
            cancel.check()
        count = len(tree) - staged
        wanted = np.arange(count, dtype=np.int64) if rows is None else rows
        length = cache.length
        check_step(tree, length, self.spec, self._vocab_size)
        check_features(self._variant, len(tree), features)
        inputs = step_values(tree, length, staged) | {"output_rows": wanted}
        if features is not None:
            inputs["features"] = features
        make_room(cache, count, staged)
        try:
            values = program.run(inputs, caches(self.spec, tree, cache, staged=staged), cancel)
        except BaseException:
            cache.truncate(length)
            raise
        hidden = {layer: values[name] for layer, name in program.hidden_states.items()}
        return StepOutput(values[str(program.logits)], hidden)

    def close(self) -> None:
        """Release the weights."""
        self._program = self._encoder = None


def step_values(tree: Tree, length: int, staged: int = 0) -> dict[str, NDArray[Any]]:
    """The inputs of every program, for a step over `length` committed rows that runs the nodes from
    number `staged` on."""
    return {"tokens": tree.tokens[staged:], "positions": positions(tree, length)[staged:]}


def caches(
    spec: ModelSpec,
    tree: Tree,
    cache: ContiguousCache,
    target: ContiguousCache | None = None,
    row: int = 0,
    staged: int = 0,
) -> Caches:
    """Where a step over a cache that has it staged writes. row: of the target, the first. staged:
    nodes that earlier steps ran."""
    n, length = len(tree), cache.length
    seen = align_slots(length + n)
    return Caches(
        cache,
        np.arange(length + staged, length + n),
        {w: attention_bias(tree, length, seen, w)[staged:] for w in spec.distinct_windows},
        distances(tree, length, seen)[staged:],
        target,
        np.arange(row, row + n),
        cache.memory,
    )
