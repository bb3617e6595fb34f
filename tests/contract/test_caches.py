"""The laws of every KV cache, against a list."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tiny.toy_backend import toy_spec

from quickdraft.errors import ContextOverflow
from quickdraft.kvcache.base import KvCache
from quickdraft.kvcache.contiguous import SLOT_ALIGNMENT, ContiguousCache

LIMIT = 3 * SLOT_ALIGNMENT


class ContiguousLaws(RuleBasedStateMachine):
    """Random steps, commits, truncations and forks; rows are numbered and never repeat."""

    caches: list[tuple[KvCache, list[int]]]

    @initialize(capacity=st.integers(1, LIMIT))
    def start(self, capacity: int) -> None:
        self.written = 0
        self.staged: list[int] = []
        self.caches = [(ContiguousCache(toy_spec(16, LIMIT), capacity), [])]

    def _write(self, count: int) -> None:
        cache, rows = self.caches[-1]
        cache.stage(count)
        self.staged = list(range(self.written, self.written + count))
        self.written += count
        for layer in range(2):
            key, value = cache.layer(layer)
            for i, row in enumerate(self.staged):
                key[len(rows) + i], value[len(rows) + i] = row + layer / 4, -row - layer / 4

    @rule(count=st.integers(1, 90))
    def step(self, count: int) -> None:
        cache, rows = self.caches[-1]
        if len(rows) + count > LIMIT:
            with pytest.raises(ContextOverflow):
                cache.stage(count)
        else:
            self._write(count)

    @precondition(lambda self: self.staged)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        cache, rows = self.caches[-1]
        path = data.draw(st.sets(st.integers(0, len(self.staged) - 1)).map(sorted))
        cache.commit(path)
        rows += [self.staged[i] for i in path]
        self.staged = []

    @precondition(lambda self: self.staged)
    @rule()
    def commit_all(self) -> None:
        cache, rows = self.caches[-1]
        cache.commit(range(len(self.staged)))
        rows += self.staged
        self.staged = []

    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        cache, rows = self.caches[-1]
        length = data.draw(st.integers(0, len(rows)))
        cache.truncate(length)
        del rows[length:]
        self.staged = []

    @rule()
    def fork(self) -> None:
        cache, rows = self.caches[-1]
        self.caches.append((cache.fork(), list(rows)))
        self.staged = []

    @precondition(lambda self: self.staged)
    @rule(bad=st.sampled_from([[-1], [0, 0], [1, 0], [10**6]]))
    def refuse_bad_paths(self, bad: list[int]) -> None:
        cache, _ = self.caches[-1]
        with pytest.raises(ValueError, match="path"):
            cache.commit(bad)
        assert cache.staged == len(self.staged)

    @rule(beyond=st.integers(1, 5))
    def refuse_bad_lengths(self, beyond: int) -> None:
        cache, rows = self.caches[-1]
        for length in (-beyond, len(rows) + beyond):
            with pytest.raises(ValueError, match="truncate"):
                cache.truncate(length)

    @invariant()
    def holds_what_was_committed(self) -> None:
        for cache, rows in getattr(self, "caches", []):
            assert cache.length == len(rows)
            assert cache.length + cache.staged <= cache.capacity
            assert cache.capacity % SLOT_ALIGNMENT == 0
            held = 0
            for layer in range(2):
                key, value = cache.layer(layer)
                expected = np.array(rows) + layer / 4
                assert (key[: len(rows)] == expected[:, None, None]).all()
                assert (value[: len(rows)] == -expected[:, None, None]).all()
                held += key.nbytes + value.nbytes
            assert cache.nbytes == held
        if getattr(self, "caches", None):
            assert self.caches[-1][0].staged == len(self.staged)


ContiguousLaws.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestContiguousCache = ContiguousLaws.TestCase


def test_a_contiguous_cache_is_a_cache() -> None:
    assert isinstance(ContiguousCache(toy_spec()), KvCache)


def test_a_cache_that_cannot_grow_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ContiguousCache(toy_spec(16, LIMIT), SLOT_ALIGNMENT)
    cache.stage(3)
    cache.commit(range(3))
    layers = [cache.layer(index) for index in range(2)]
    taken = []

    def zeros(shape: tuple[int, ...], dtype: type) -> np.ndarray:
        taken.append(shape)
        if len(taken) == 2:
            raise MemoryError
        return np.empty(shape, dtype)

    monkeypatch.setattr("quickdraft.kvcache.contiguous.np.zeros", zeros)
    with pytest.raises(MemoryError):
        cache.stage(2 * SLOT_ALIGNMENT)
    assert (cache.length, cache.capacity, cache.version) == (3, SLOT_ALIGNMENT, 0)
    assert [cache.layer(index)[0] is layers[index][0] for index in range(2)] == [True, True]
