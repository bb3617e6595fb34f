"""What followed n-grams, counted in a table of fixed size that forgets the rarest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

WAYS = 4
"""Successors a bucket holds; n-grams that fall into one bucket share them."""
MAX_COUNT = 15
_MASK = (1 << 64) - 1
_FACTOR = 0x9E3779B97F4A7C15
_FINAL = 0xD6E8FEB86659FD93

Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class Entries:
    """Successors of n-grams. keys: uint64 [m], of the n-grams. tokens: uint32 [m], what followed.
    counts: integers [m], how often."""

    keys: Keys
    tokens: NDArray[np.uint32]
    counts: NDArray[np.integer[Any]]


def key_of(tokens: Sequence[int]) -> int:
    """A number for an n-gram, never 0; of any two n-grams hardly ever the same."""
    state = len(tokens) * _FACTOR & _MASK  # no token of a vocabulary undoes it
    for token in tokens:
        state = ((state ^ token) * _FACTOR) & _MASK
        state ^= state >> 29
    state = (state * _FINAL) & _MASK
    return (state ^ (state >> 32)) or 1


def keys_of(tokens: NDArray[np.int64], size: int) -> Keys:
    """uint64 [len(tokens) - size + 1]: `key_of` of every n-gram of a text."""
    words = tokens.astype(np.uint64)
    count = len(words) - size + 1
    state = np.full(count, size * _FACTOR & _MASK, np.uint64)
    for i in range(size):
        state = (state ^ words[i : i + count]) * np.uint64(_FACTOR)
        state ^= state >> np.uint64(29)
    state *= np.uint64(_FINAL)
    return np.maximum(state ^ (state >> np.uint64(32)), np.uint64(1))


class NgramTable:
    """Buckets of successors: key of an n-gram (0: none), token that followed, how often.

    keys: uint64 [buckets, WAYS]. tokens: uint32, counts: uint8, of the same shape.
    """

    def __init__(self, entries: int) -> None:
        """entries: successors it holds, a power of two and at least WAYS."""
        shape = (entries // WAYS, WAYS)
        self.keys = np.zeros(shape, np.uint64)
        self.tokens = np.zeros(shape, np.uint32)
        self.counts = np.zeros(shape, np.uint8)
        self._last = shape[0] - 1

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.keys.nbytes + self.tokens.nbytes + self.counts.nbytes

    def successors(self, key: int) -> list[tuple[int, int]]:
        """Tokens that followed an n-gram and their counts, most frequent first."""
        bucket = key & self._last
        keys = self.keys[bucket].tolist()
        if key not in keys:
            return []
        tokens, counts = self.tokens[bucket].tolist(), self.counts[bucket].tolist()
        found = [(counts[i], tokens[i]) for i in range(WAYS) if keys[i] == key]
        found.sort(reverse=True)
        return [(token, count) for count, token in found]

    def learn(self, tokens: Sequence[int], size: int, start: int = 0) -> None:
        """Count what followed every n-gram of `size` tokens of a text, from tokens[start] on."""
        start = max(start, size)
        if len(tokens) <= start:
            return
        text = np.asarray(tokens[start - size :], np.int64)
        keys, said = keys_of(text[:-1], size), text[size:].astype(np.uint32)
        order = np.lexsort((said, keys))
        keys, said = keys[order], said[order]
        first = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]) | (said[1:] != said[:-1])])
        counts = np.diff(np.r_[first, len(keys)])
        self._insert(Entries(keys[first], said[first], counts), np.add)

    def entries(self) -> Entries:
        """A copy of everything in the table, by bucket."""
        used = self.keys != 0
        return Entries(self.keys[used], self.tokens[used], self.counts[used])

    def merge(self, entries: Entries) -> None:
        """Add the entries of another table; of one that both hold the larger count stays."""
        buckets = self._buckets(entries.keys)
        if not self.keys.any() and len(buckets) and (buckets[1:] >= buckets[:-1]).all():
            starts = np.flatnonzero(np.r_[True, buckets[1:] != buckets[:-1]])
            sizes = np.diff(np.r_[starts, len(buckets)])
            if sizes.max() <= WAYS:  # a copy of a table as large as this one
                ways = np.arange(len(buckets)) - np.repeat(starts, sizes)
                self.keys[buckets, ways] = entries.keys
                self.tokens[buckets, ways] = entries.tokens
                self.counts[buckets, ways] = entries.counts
                return
        self._insert(entries, np.maximum)

    def _buckets(self, keys: Keys) -> NDArray[np.int64]:
        return (keys & np.uint64(self._last)).astype(np.int64)

    def _insert(self, entries: Entries, combine: np.ufunc) -> None:
        """Insert entries, of which no two are the same. Where a bucket is full a newcomer wears its
        rarest entry down, and takes its place once nothing is left (Misra and Gries, 1982)."""
        buckets = self._buckets(entries.keys)
        order = np.argsort(buckets, kind="stable")
        buckets = buckets[order]
        # Entries of one bucket must see each other: each round takes the first of every bucket.
        starts = np.flatnonzero(np.r_[True, buckets[1:] != buckets[:-1]][: len(buckets)])
        sizes = np.diff(np.r_[starts, len(buckets)])
        for turn in range(int(sizes.max(initial=0))):
            at = order[starts[sizes > turn] + turn]
            self._insert_round(
                self._buckets(entries.keys[at]),
                entries.keys[at],
                entries.tokens[at],
                entries.counts[at].astype(np.int64),
                combine,
            )

    def _insert_round(
        self,
        buckets: NDArray[np.int64],
        keys: Keys,
        tokens: NDArray[np.uint32],
        counts: NDArray[np.int64],
        combine: np.ufunc,
    ) -> None:
        """Insert one entry into each of different buckets."""
        same = (self.keys[buckets] == keys[:, None]) & (self.tokens[buckets] == tokens[:, None])
        held = self.counts[buckets].astype(np.int64)
        known = same.any(1)
        way = np.where(known, same.argmax(1), held.argmin(1))
        before = held[np.arange(len(buckets)), way]
        placed = known | (counts >= before)
        after = np.where(placed, np.maximum(counts - before, 1), before - counts)
        after = np.where(known, combine(before, counts), after)
        self.counts[buckets, way] = np.minimum(after, MAX_COUNT)
        self.keys[buckets[placed], way[placed]] = keys[placed]
        self.tokens[buckets[placed], way[placed]] = tokens[placed]
