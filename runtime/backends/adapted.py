"""What backends over other exporters' graphs share: steps in pieces, plain inputs, refusals.

Such a graph has no input that says which rows a row may see, so it takes chains only, and it puts
out the logits of every row, so a prompt runs in pieces: 128 rows of a vocabulary of 152,000 are
78 MB already.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, BundleError
from quickdraft.kvcache.base import KvCache
from quickdraft.manifest import StepNames, Variant
from quickdraft.runtime.backends.base import CancelToken, StepOutput, Trees
from quickdraft.runtime.backends.step_inputs import check_step
from quickdraft.types import Guarantee, ModelSpec

PIECE = 128
"""Rows that run at once."""
PROBE = (0, 1, 2)
AGREEMENT = 1e-2
"""How far logits may differ, relative to the largest of them, between a chain and its tokens one
by one: rounding stays far below, a missing causal mask far above."""

Feeds = dict[str, NDArray[Any]]
Cache = TypeVar("Cache", bound=KvCache)


class Piece(Protocol):
    """Runs some rows of a step."""

    def __call__(self, tokens: NDArray[np.int64], past: int) -> NDArray[np.float32]:
        """Logits of `tokens` behind `past` rows: float32 [n, vocabulary], valid until the next."""


class AdaptedBackend(ABC, Generic[Cache]):
    """A Backend over a graph that another exporter wrote."""

    name = ""
    top = 0
    isa = None
    kv_type = "f32"
    trees: Trees = "none"
    guarantee: Guarantee = "same_distribution"

    def __init__(self, spec: ModelSpec, variant: Variant) -> None:
        """Take a variant of the flavour `adapted`.

        Raises:
            BundleError: it is another one.
        """
        if variant.flavour != "adapted":
            raise BundleError(
                f"{variant.model} is of the flavour {variant.flavour!r}, and the backend "
                f"{self.name!r} opens 'adapted' ones; use the backend of its flavour"
            )
        self.spec = spec
        self.flavour = variant.flavour
        self._variant = variant
        self.width = PIECE
        """Rows that may run at once over a past."""
        self.pairs = False
        """Whether a single row runs with one more, whose results are dropped: kernels for one row
        round in another way than those for several, which would tell drafted answers from plain
        ones."""

    @abstractmethod
    def new_cache(self) -> Cache:
        """An empty cache that fits this backend."""

    @abstractmethod
    def _begin(self, cache: KvCache, cancel: CancelToken | None) -> Piece:
        """Get ready for a step over `cache`, whose rows were just staged.

        Raises:
            BackendError: the model was closed, or the cache is another backend's.
        """

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
        if not tree.is_chain:
            raise BackendError(
                "this model was exported by another tool, and its graph takes chains of tokens only"
            )
        if cancel is not None:
            cancel.check()
        length, count = cache.length, len(tree)
        check_step(tree, length, self.spec)
        wanted = np.arange(count) if rows is None else rows
        logits = np.empty((len(wanted), self.spec.vocab_size), np.float32)
        pad = self.pairs and self.width > 1 and length + count < self.spec.context_length
        if pad:
            cache.stage(count + 1)  # makes room for the row more
        cache.stage(count)
        try:
            run, done = self._begin(cache, cancel), 0
            while done < count:
                size = PIECE if length + done == 0 else self.width
                tokens = tree.tokens[done : done + size]
                given = np.repeat(tokens, 2) if pad and len(tokens) == 1 else tokens
                found = run(given, length + done)
                here = np.flatnonzero((wanted >= done) & (wanted < done + len(tokens)))
                logits[here] = found[wanted[here] - done]
                done += len(tokens)
        except BaseException:
            cache.truncate(length)
            raise
        return StepOutput(logits)

    def close(self) -> None:
        """Release the model; later steps raise BackendError."""

    def probe(self) -> None:
        """Find out whether a chain over a past gives what its tokens give one by one, and run
        single tokens if not: graphs that were traced with one token have no causal mask."""
        chain, single = self.new_cache(), self.new_cache()
        tokens = np.array(PROBE, np.int64) % self.spec.vocab_size
        for cache in (chain, single):
            self.step(Tree.chain(tokens[:1]), cache)
            cache.commit([0])
        one_by_one = []
        for token in tokens:
            one_by_one.append(self.step(Tree.chain([int(token)]), single).logits[0])
            single.commit([0])
        try:
            together = self.step(Tree.chain(tokens), chain).logits
        except BackendError:  # one that takes a single row says so
            self.width = 1
            return
        expected = np.array(one_by_one)
        if not np.abs(together - expected).max() <= AGREEMENT * np.abs(expected).max():
            self.width = 1


def step_feeds(names: StepNames, tokens: NDArray[np.int64], past: int) -> Feeds:
    """The plain inputs of `tokens` behind `past` rows, each with a batch of one in front."""
    end = past + len(tokens)
    feeds: Feeds = {str(names.tokens): tokens[None]}
    if names.mask is not None:
        feeds[names.mask] = np.ones((1, end), np.int64)
    if names.positions is not None:
        feeds[names.positions] = np.arange(past, end, dtype=np.int64)[None]
    if names.branch is not None:
        feeds[names.branch] = np.array([past > 0])
    if names.beams is not None:
        feeds[names.beams] = np.zeros(1, np.int32)
    return feeds
