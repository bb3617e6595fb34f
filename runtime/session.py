"""A conversation as the model sees it: tokens and their keys and values."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from quickdraft.drafters.conversation import common_prefix
from quickdraft.drafters.tree import Tree
from quickdraft.errors import InputError
from quickdraft.kvcache.base import KvCache
from quickdraft.kvcache.memory import Memories, Memory, Source
from quickdraft.runtime import clock
from quickdraft.runtime.backends.base import Backend, CancelToken, Seq2SeqBackend
from quickdraft.runtime.drafting import Drafting
from quickdraft.runtime.prediction import EXACT, Prediction, PredictionReport, Prefill
from quickdraft.runtime.result import SourceReport
from quickdraft.runtime.speculation import Speculation
from quickdraft.runtime.told_states import ToldStates


class Session:
    """State kept from one answer to the next; what a new prompt shares with it is not run again.

    One answer at a time. Sessions of one model may run in different threads.
    backend: the one that fills the cache; keys and values mean nothing to another.
    tokens: all tokens known; the cache holds the first `cache.length` of them. speculation: its
    drafters, None to decode plainly. prediction: what predicts for it. prefill, predictor: how
    the predicted rows of the cache came about, where it has any. refreshed: a cache that holds
    exact rows of the first `refreshed.length` tokens, where a refresh has begun. told: hidden
    states of rows of it that drafters do not know yet. source: what an encoder-decoder model
    answers about, None before it was asked. memories: of the model's sources.
    """

    def __init__(
        self,
        backend: Backend,
        drafting: Drafting | None = None,
        prediction: Prediction | None = None,
        memories: Memories | None = None,
    ) -> None:
        self.backend = backend
        self.cache: KvCache = backend.new_cache()
        self.speculation = Speculation(drafting) if drafting and drafting.sources else None
        self.prediction = prediction or Prediction(backend)
        self.prefill, self.predictor = EXACT, ""
        self.refreshed: KvCache | None = None
        self.told = ToldStates()
        self.tokens: list[int] = []
        self.source: Source | None = None
        self.memory: Memory | None = None
        self._memories = memories or Memories()
        self._lock = threading.Lock()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Hold the session for one answer.

        Raises:
            InputError: another answer runs in it.
        """
        if not self._lock.acquire(blocking=False):
            raise InputError(
                "this session is already answering; finish, cancel or close that answer first, "
                "or use one session per thread"
            )
        try:
            yield
        finally:
            self._lock.release()

    def read(self, source: Source, cancel: CancelToken | None = None) -> SourceReport:
        """Put the cache over the memory of a source; what it held of another one is forgotten.

        Raises:
            InputError: the model cannot read the source. Cancelled: nothing has changed.
        """
        backend = self.backend
        if not isinstance(backend, Seq2SeqBackend):
            raise InputError("the model has no encoder for a source; give it a prompt")
        started = clock.now()
        memory, known = self._memories.get(source, lambda new: backend.encode(new, cancel))
        if self.source is None or self.memory is not memory:
            self.cache, self.memory = backend.new_cache(memory), memory
            self.tokens, self.refreshed, self.told = [], None, ToldStates()
        self.source = source
        spent = 0.0 if known else 1e3 * (clock.now() - started)
        return SourceReport(
            len(source), "frames" if source.tokens is None else "tokens", spent, known
        )

    def rewind(self, prompt: Sequence[int], predicted: bool = False) -> int:
        """Keep what the cache shares with `prompt` and forget the rest; the prompt's last token is
        never kept, because its logits are needed. Returns the number of rows kept.

        predicted: whether predicted rows may be among them. They stay all or none: where the
        prompt leaves the conversation within them, it is cheaper to predict anew.
        """
        shared = min(common_prefix(self.tokens, prompt), len(prompt) - 1)
        self.tokens = list(prompt)
        if self.refreshed is not None:
            self.refreshed.truncate(min(self.refreshed.length, shared))
            self.told.truncate(self.refreshed.length)
        kept = min(self.cache.length, shared)
        if self.cache.predicted:
            usable = predicted and kept >= self.cache.predicted
            if self.refreshed is not None and (not usable or self.refreshed.length >= kept):
                self.use_refreshed()
                return self.cache.length
            kept = kept if usable else 0
        self.cache.truncate(kept)
        return kept

    def predict(self, rows: int, prefill: Prefill, cancel: CancelToken | None) -> float:
        """Append predicted rows to the cache until it has as many as Prediction.rows said; returns
        seconds. The very first ones are the target's, as many as the predictor wants.

        Raises:
            Cancelled, BackendError: the cache holds no predicted row.
        """
        entry = self.prediction.entry(prefill)
        predictor = self.prediction.predictor(entry.name)
        started = clock.now()
        if self.cache.length < entry.exact_first:
            first = Tree.chain(self.tokens[self.cache.length : entry.exact_first])
            last = np.array([len(first) - 1], np.int64)
            self.backend.step(first, self.cache, last, cancel, full_logits=False)
            self.cache.commit(range(len(first)))
        read = np.asarray(self.tokens[:rows], np.int64)
        auxiliary = predictor.predict(read, self.cache, cancel)
        if auxiliary is not None and self.speculation is not None:
            self.speculation.adopt(entry.auxiliary, self.tokens[:rows], auxiliary)
        self.prefill, self.predictor = prefill, entry.name
        return clock.now() - started

    def use_refreshed(self) -> None:
        """Let the exact rows of a refresh take the place of the predicted ones."""
        if self.refreshed is None:
            raise ValueError("there is nothing refreshed")
        self.cache, self.refreshed = self.refreshed, None

    def report(self) -> PredictionReport | None:
        """What is known of the predicted rows in the cache; None where there are none."""
        rows = self.cache.predicted
        return PredictionReport(self.predictor, rows) if rows else None

    def clear(self) -> None:
        """Forget everything."""
        with self.busy():
            self.cache.truncate(0)
            self.refreshed, self.told = None, ToldStates()
            self.tokens = []
