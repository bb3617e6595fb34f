"""The backend contract: a loaded model that turns a tree of tokens into logits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.tree import Tree
from quickdraft.errors import Cancelled, OptionError
from quickdraft.kvcache.base import KvCache
from quickdraft.kvcache.memory import Memory, Source
from quickdraft.types import Guarantee, ModelSpec

Trees = Literal["exact", "rounded", "none"]
"""What a backend makes of trees with branches. exact: every row has the bits it has in plain
decoding. rounded: only chains do; a branch differs by rounding. none: it takes chains only."""


class CancelToken:
    """Asks running work to stop, from any thread; stays set. Calling twice is harmless."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._callback: Callable[[], None] | None = None

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._event.is_set()

    def cancel(self) -> None:
        """Stop the step that runs now, and every later one."""
        with self._lock:
            self._event.set()
            if self._callback is not None:
                self._callback()

    def check(self) -> None:
        """Raise Cancelled if `cancel` was called."""
        if self.cancelled:
            raise Cancelled("stopped on request")

    def attach(self, callback: Callable[[], None] | None) -> None:
        """Set what `cancel` calls while a step runs (a backend's way to interrupt it)."""
        with self._lock:
            self._callback = callback
            if callback is not None and self._event.is_set():
                callback()


def refuse_kv_types(backend: str, kv_cache: str | None) -> None:
    """For backends whose caches are float32 and nothing else.

    Raises:
        OptionError: another type is asked for.
    """
    if kv_cache not in (None, "f32"):
        raise OptionError(
            f"kv_cache is {kv_cache!r}, and the backend {backend!r} has f32 only; leave the option "
            "out, or use a bundle and backend of the hotpath flavour"
        )


@dataclass(frozen=True)
class TopTokens:
    """The t largest logits of each wanted row.

    values: float32 [m, t], largest first; ids: int64 [m, t], of equal values the lower id first.
    log_sum: float32 [m], the log of the sum of exp over all logits of the row; not a number if
    one of them is not.
    """

    values: NDArray[np.float32]
    ids: NDArray[np.int64]
    log_sum: NDArray[np.float32]


@dataclass(frozen=True)
class StepOutput:
    """logits: float32 [m, vocabulary], one row per wanted row; no rows where they were not asked
    for and `top` stands for them. hidden_states: float32 [n, hidden] by number of layers passed,
    for those the bundle was exported with. top: from backends whose `top` is not 0.

    The arrays are valid until the next step on the same cache, which may write over them: who
    keeps rows copies them.
    """

    logits: NDArray[np.float32]
    hidden_states: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)
    top: TopTokens | None = None


class Backend(Protocol):
    """A loaded model. Thread-safe: several conversations, each with its own cache, share it.

    top: how many of the largest logits of a row it offers; 0: it always gives all logits.
    device: what it computes on, as its library names that. isa: the instruction set of our own
    kernels, None where another library computes. kv_type: how its caches store keys and values,
    `f32`, `f16` or `int8`. trees: what it makes of branches.
    """

    name: str
    flavour: str
    spec: ModelSpec
    guarantee: Guarantee
    top: int
    isa: str | None
    kv_type: str
    trees: Trees

    @property
    def device(self) -> str:
        """See above."""

    def new_cache(self) -> KvCache:
        """An empty cache that fits this backend."""

    def step(
        self,
        tree: Tree,
        cache: KvCache,
        rows: NDArray[np.int64] | None = None,
        cancel: CancelToken | None = None,
        *,
        full_logits: bool = True,
    ) -> StepOutput:
        """Run the tree over the committed cache; its keys and values are staged in the cache.

        rows: int64 [m], m >= 1, the nodes whose logits are wanted; None means all. full_logits:
        False lets a backend that has `top` leave the logits out.

        Raises:
            Cancelled: nothing is staged, the cache stays usable.
            ContextOverflow: the rows do not fit.
            BackendError: the engine failed.

        Logits that are not numbers are passed on: choosing a token finds them at no cost.
        """

    def close(self) -> None:
        """Release the model; later steps raise BackendError."""


@runtime_checkable
class GrowingBackend(Protocol):
    """A Backend whose trees may grow over several steps."""

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
        """Run the nodes of a tree from number `staged` on; their logits, one row each, or of those
        of them that `rows` names, counted from the first that is run. Nodes before `staged` are
        what the cache has staged: earlier steps ran them, over the same committed rows or over
        the first of these, with what `KvCache.keep` committed since.

        Raises as Backend.step; after that nothing is staged.
        """


class HeadBackend(Backend, Protocol):
    """A Backend that also runs parts whose variant has features."""

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
        """As Backend.step. features: float32 [n, width], for such a part and only for it."""


@runtime_checkable
class Seq2SeqBackend(Backend, Protocol):
    """A Backend of an encoder-decoder model: steps over a cache attend to its memory."""

    def encode(self, source: Source, cancel: CancelToken | None = None) -> Memory:
        """Read a source.

        Raises:
            InputError: the model has no meaning for it, see Source.check.
            Cancelled: on request. BackendError: the engine failed.
        """

    def new_cache(self, memory: Memory | None = None) -> KvCache:
        """An empty cache over a memory, which its forks share. Without one it can be looked at, and
        a step over it raises BackendError."""


class Predictor(Protocol):
    """Fills the cache of a target with predicted keys and values (arXiv 2410.08391, section 3)."""

    def predict(
        self, tokens: NDArray[np.int64], cache: KvCache, cancel: CancelToken | None = None
    ) -> KvCache | None:
        """Append a predicted row for every token that the cache has no row of, committed. Returns
        the cache of its auxiliary model with a row of every token, None if it fills a part of it.

        tokens: int64 [n], n > cache.length, from the first token on. Rows that the cache holds are
        exact ones of the first tokens, and stay as they are. Afterwards all are marked predicted.

        Raises:
            Cancelled: the cache is as before.
            ContextOverflow: the rows do not fit. BackendError: the engine failed. As Cancelled.
        """

    def close(self) -> None:
        """Release it."""
