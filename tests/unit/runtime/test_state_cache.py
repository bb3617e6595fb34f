"""A cache over states that an engine holds: rows are counted here, moved there."""

from __future__ import annotations

import numpy as np
import pytest
from tiny.toy_backend import toy_spec

from quickdraft.errors import ContextOverflow
from quickdraft.kvcache.states import Floats, StateCache

LIMIT = 20
SPEC = toy_spec(16, LIMIT)


class Memory:
    """States in NumPy, whose slots hold numbers."""

    slots = LIMIT + 16
    nbytes = 1234

    def __init__(self) -> None:
        heads = sum(SPEC.num_kv_heads)
        self.keys = np.zeros((heads, self.slots, SPEC.head_dim), np.float32)

    def read(self) -> tuple[Floats, Floats]:
        return self.keys.copy(), -self.keys

    def move(self, source: np.ndarray, first: int) -> None:
        self.keys[:, first : first + len(source)] = self.keys[:, source]

    def copy(self) -> Memory:
        twin = Memory()
        twin.keys = self.keys.copy()
        return twin


def staged(rows: int, committed: int = 0) -> tuple[StateCache, Memory]:
    """A cache with some rows, numbered from 1."""
    memory = Memory()
    cache = StateCache(SPEC, memory, LIMIT)
    for count in (committed, rows):
        cache.stage(count)
        here = slice(cache.length, cache.length + count)
        memory.keys[:, here] = np.arange(here.start + 1, here.stop + 1)[:, None]
        if count == committed:
            cache.commit(range(count))
            committed = -1
    return cache, memory


def rows_of(cache: StateCache) -> list[int]:
    keys, values = cache.layer(0)
    assert np.array_equal(values, -keys)
    assert keys.shape == (LIMIT, SPEC.num_kv_heads[0], SPEC.head_dim)
    return keys[: cache.length, 0, 0].astype(int).tolist()


def test_a_path_is_moved_together() -> None:
    cache, _ = staged(6, committed=3)
    cache.commit([0, 2, 5])
    assert rows_of(cache) == [1, 2, 3, 4, 6, 9]


def test_forks_are_independent() -> None:
    cache, memory = staged(3, committed=2)
    twin = cache.fork()
    assert (twin.length, twin.staged, twin.nbytes) == (2, 0, 1234)
    memory.keys[:] = 0
    assert rows_of(twin) == [1, 2]
    assert rows_of(cache) == [0, 0]


def test_it_does_not_grow() -> None:
    cache, _ = staged(5, committed=10)
    cache.commit(range(5))
    assert cache.capacity == LIMIT
    with pytest.raises(ContextOverflow):
        cache.stage(6)
    cache.stage(5)
    cache.truncate(3)
    assert rows_of(cache) == [1, 2, 3]


def test_rows_that_stay_staged_do_not_outgrow_the_states() -> None:
    cache, _ = staged(5, committed=10)
    with pytest.raises(ContextOverflow):
        cache.extend(6)
    assert (cache.length, cache.staged) == (10, 5)
