"""The n-gram table counts what a dictionary counts while it has room, and keeps to its size."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quickdraft.drafters.ngram_table import MAX_COUNT, WAYS, Entries, NgramTable, key_of, keys_of

texts = st.lists(st.integers(0, 2), max_size=60)


@settings(max_examples=50)
@given(tokens=st.lists(st.integers(0, 200_000), min_size=1, max_size=40), size=st.integers(1, 6))
def test_keys_of_a_text_are_those_of_its_ngrams(tokens: list[int], size: int) -> None:
    if len(tokens) >= size:
        keys = keys_of(np.array(tokens), size).tolist()
        assert keys == [key_of(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]


def test_ngrams_have_different_keys() -> None:
    ngrams = [(a, b, c) for a in range(20) for b in range(20) for c in range(20)]
    ngrams += [(a, b) for a in range(50) for b in range(50)]
    keys = {key_of(ngram) for ngram in ngrams}
    assert len(keys) == len(ngrams)
    buckets = Counter(key & 1023 for key in keys)
    assert max(buckets.values()) < 4 * len(keys) / 1024


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(texts, min_size=1, max_size=4), size=st.integers(1, 3))
def test_it_counts_what_a_dictionary_counts(parts: list[list[int]], size: int) -> None:
    """In parts, each with the tokens before it, as in one go."""
    table = NgramTable(1 << 14)
    text: list[int] = []
    for part in parts:
        start = len(text)
        text += part
        table.learn(text, size, start)
    counts = Counter((tuple(text[i - size : i]), text[i]) for i in range(size, len(text)))
    for ngram in {ngram for ngram, _ in counts}:
        expected = {token: min(counts[ngram, token], MAX_COUNT) for token in range(3)}
        found = table.successors(key_of(ngram))
        assert dict(found) == {token: count for token, count in expected.items() if count}
        assert [count for _, count in found] == sorted((c for _, c in found), reverse=True)
    assert len(table.entries().keys) == len(counts)


def insert(table: NgramTable, key: int, token: int, times: int) -> None:
    for _ in range(times):
        table.learn([key, token], 1)


def test_a_full_bucket_gives_up_what_is_rare() -> None:
    table = NgramTable(WAYS)  # a single bucket
    for token in range(WAYS):
        insert(table, token, 9, 3 if token else 1)
    insert(table, 50, 9, 1)  # takes the place of the one counted once
    assert table.successors(key_of([0])) == []
    assert table.successors(key_of([50])) == [(9, 1)]
    assert table.successors(key_of([1])) == [(9, 3)]
    insert(table, 50, 9, 5)
    insert(table, 60, 9, 1)  # wears a rare one down ...
    assert table.successors(key_of([60])) == []
    insert(table, 60, 9, 2)  # ... until nothing is left
    assert table.successors(key_of([60])) == [(9, 1)]
    assert len(table.entries().keys) == WAYS


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 99), entries=st.sampled_from([1 << 6, 1 << 9]))
def test_a_copy_is_equal(seed: int, entries: int) -> None:
    rng = np.random.default_rng(seed)
    table, copy = NgramTable(entries), NgramTable(entries)
    table.learn(rng.integers(0, 9, 400).tolist(), 3)
    copy.merge(table.entries())
    for name in ("keys", "tokens", "counts"):
        first, second = (getattr(t.entries(), name) for t in (table, copy))
        assert first.tolist() == second.tolist()


def test_merging_takes_the_larger_count() -> None:
    first, second = NgramTable(1 << 8), NgramTable(1 << 8)
    insert(first, 1, 2, 3)
    insert(first, 4, 5, 1)
    insert(second, 1, 2, 2)
    insert(second, 7, 8, 6)
    for _ in range(2):  # again changes nothing
        first.merge(second.entries())
    said = {token: first.successors(key_of([token])) for token in (1, 4, 7)}
    assert said == {1: [(2, 3)], 4: [(5, 1)], 7: [(8, 6)]}


@pytest.mark.parametrize("entries", [1 << 6, 1 << 9])
def test_tables_of_different_sizes_merge(entries: int) -> None:
    large, small = NgramTable(1 << 8), NgramTable(entries)
    large.learn(np.random.default_rng(1).integers(0, 99, 100).tolist(), 2)
    small.merge(large.entries())
    held = small.entries()
    known = {*zip(large.entries().keys.tolist(), large.entries().tokens.tolist(), strict=True)}
    assert {*zip(held.keys.tolist(), held.tokens.tolist(), strict=True)} <= known
    assert len(held.keys) > 40


def test_nothing_comes_of_nothing() -> None:
    table = NgramTable(1 << 6)
    table.learn([], 3)
    table.learn([1, 2, 3], 3)
    none = np.zeros(0, np.uint64)
    table.merge(Entries(none, none.astype(np.uint32), none.astype(np.uint8)))
    assert len(table.entries().keys) == 0
    assert table.successors(key_of([1, 2, 3])) == []
