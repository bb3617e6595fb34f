"""The n-gram store: what followed these words in other conversations?

One table per target model, shared by its conversations and kept in a file from one run to the next.
What the conversation at hand holds is for prompt lookup: the store learns of an answer when the
next one begins, and when it is closed, so that nothing but look-ups happens while tokens flow.

The file holds parts of what was said and is readable by its owner only; without a folder to keep
it in, everything stays in memory.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from quickdraft.drafters.base import (
    Draft,
    DrafterContext,
    DrafterSource,
    DraftSettings,
    Observation,
)
from quickdraft.drafters.best_first import grow
from quickdraft.drafters.conversation import common_prefix
from quickdraft.drafters.ngram_file import NgramFile
from quickdraft.drafters.ngram_table import NgramTable, key_of
from quickdraft.drafters.options import checked

SIZES = (5, 3)
"""Sizes of the n-grams; the shorter ones are asked where the longer ones know nothing."""
SAVE_EVERY = 60.0
"""Seconds between two savings, at the beginnings of answers."""
_SHARES = (0.2, 0.4, 0.55, 0.7, 0.85)
_STEPS = len(_SHARES) + 1


@dataclass(frozen=True)
class NgramStoreOptions:
    """log2_entries: logarithm of the successors kept, 13 bytes each. max_nodes: largest draft.
    floor: least likelihood of a path."""

    LIMITS: ClassVar[Mapping[str, tuple[float, float]]] = {
        "log2_entries": (6, 22),
        "max_nodes": (1, 64),
        "floor": (0.0, 1.0),
    }
    log2_entries: int = 18
    max_nodes: int = 16
    floor: float = 0.03


GRADES = (0.05, 0.15, 0.5, 0.65, 0.75, 0.85, 0.03, 0.12, 0.33, 0.42, 0.6, 0.7)
"""By the share of a successor among what followed its n-gram; of the longer n-grams, then of the
shorter ones."""


def open_ngram_store(context: DrafterContext, options: Mapping[str, Any]) -> DrafterSource:
    """Open the drafter. Its file is read when the first answer begins.

    Raises:
        OptionError: an option is unknown or has a bad value.
    """
    chosen = checked(NgramStoreOptions, "ngram_store", options)
    file = None
    if context.store is not None:
        file = NgramFile(context.store, context.key, context.vocab_size)
    store = NgramStore(NgramTable(1 << chosen.log2_entries), file)
    return DrafterSource(
        "ngram_store",
        GRADES,
        lambda: NgramDrafter(store, chosen),
        nbytes=lambda: store.table.nbytes,
        close=store.close,
    )


class NgramStore:
    """The table of a target and its file. Used by drafters of several threads."""

    def __init__(self, table: NgramTable, file: NgramFile | None) -> None:
        self.table = table
        self.lock = threading.RLock()
        self._file = file
        self._waiting: list[NgramDrafter] = []
        self._loaded = file is None
        self._unsaved = False
        self._saved_at = time.monotonic()

    def announce(self, drafter: NgramDrafter) -> None:
        """There is something to learn from a drafter's conversation."""
        self._waiting.append(drafter)

    def settle(self) -> None:
        """Between answers: learn what was said since, save it now and then."""
        with self.lock:
            if self._file is not None and not self._loaded:
                self._file.load(self.table)
                self._loaded = True
            self._learn()
            if time.monotonic() - self._saved_at >= SAVE_EVERY:
                self._save()

    def close(self) -> None:
        """Learn and save the rest."""
        with self.lock:
            if self._waiting:
                self.settle()
            self._save()

    def _learn(self) -> None:
        for drafter in self._waiting:
            text, start = drafter.take()
            for size in SIZES:
                self.table.learn(text, size, start)
            self._unsaved = True
        self._waiting = []

    def _save(self) -> None:
        if self._file is not None and self._unsaved:
            self._unsaved = not self._file.save(self.table)
        self._saved_at = time.monotonic()


class NgramDrafter:
    """The drafter of one conversation."""

    def __init__(self, store: NgramStore, options: NgramStoreOptions) -> None:
        self._store = store
        self._options = options
        self._tokens: list[int] = []
        self._taken = 0

    def begin(self, tokens: Sequence[int], settings: DraftSettings) -> None:
        """Take up the conversation; what was said before is learned now."""
        with self._store.lock:
            self._store.settle()
            self._taken = min(self._taken, common_prefix(self._tokens, tokens))
            self._tokens = list(tokens)
            if self._taken < len(tokens):
                self._store.announce(self)

    def observe(self, observation: Observation) -> None:
        """Follow the conversation."""
        with self._store.lock:
            if self._taken == len(self._tokens):
                self._store.announce(self)
            self._tokens += observation.tokens

    def take(self) -> tuple[list[int], int]:
        """Everything said, and how much of it was taken before."""
        start, self._taken = self._taken, len(self._tokens)
        return self._tokens, start

    def propose(self, budget: int) -> Draft | None:
        """What followed the last tokens elsewhere, the likeliest paths."""
        if budget < 1:
            return None
        budget = min(budget, self._options.max_nodes)
        context = tuple(self._tokens[-SIZES[0] :])
        with self._store.lock:
            return grow(context, self._successors, budget, self._options.floor)

    def _successors(self, context: tuple[int, ...]) -> list[tuple[int, float, int]]:
        for level, size in enumerate(SIZES):
            if len(context) < size:
                continue
            found = self._store.table.successors(key_of(context[len(context) - size :]))
            if found:
                total = sum(count for _, count in found) + 1
                shares = [(token, count / total) for token, count in found]
                return [(t, p, level * _STEPS + bisect_right(_SHARES, p)) for t, p in shares]
        return []
