"""The laws of every KV cache, against a list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tiny.toy_backend import toy_spec

from quickdraft.errors import ContextOverflow, OptionError
from quickdraft.kvcache import blocked
from quickdraft.kvcache.base import KvCache
from quickdraft.kvcache.blocked import BLOCK, KV_TYPES, BlockedCache
from quickdraft.kvcache.by_head import ByHeadCache
from quickdraft.kvcache.contiguous import SLOT_ALIGNMENT, ContiguousCache

LIMIT = 3 * SLOT_ALIGNMENT
SPEC = replace(toy_spec(16, LIMIT), num_heads=(2, 2), num_kv_heads=(2, 1))


def contents(rows: list[int], layer: int, heads: int) -> np.ndarray:
    """float32 [rows, heads, 4] that tells every row, layer and head apart: digits of base 16,
    which all KV types keep."""
    number = np.array(rows, np.int64)[:, None] * 4 + 2 * layer + np.arange(heads)
    return (number[..., None] >> (4 * np.arange(4)) & 15).astype(np.float32)


class Laws:
    """Random steps, commits, truncations, forks and marks; rows are numbered and never repeat.

    marked: of every cache, how many of its first rows are predicted.
    """

    make: Callable[[int], KvCache]
    caches: list[tuple[KvCache, list[int]]]
    marked: list[int]

    def put(self, cache: KvCache, layer: int, slots: list[int], rows: np.ndarray) -> None:
        """Write what a step would."""
        key, value = cache.layer(layer)
        key[slots], value[slots] = rows, -rows

    @initialize(capacity=st.integers(1, LIMIT))
    def start(self, capacity: int) -> None:
        self.written = 0
        self.staged: list[int] = []
        self.caches = [(type(self).make(capacity), [])]
        self.marked = [0]

    def _write(self, count: int) -> None:
        self.caches[-1][0].stage(count)
        self.staged = []
        self._put_new(count)

    def _put_new(self, count: int) -> None:
        cache, rows = self.caches[-1]
        new = list(range(self.written, self.written + count))
        self.written += count
        first = len(rows) + len(self.staged)
        for layer, heads in enumerate(SPEC.num_kv_heads):
            slots = list(range(first, first + count))
            self.put(cache, layer, slots, contents(new, layer, heads))
        self.staged += new

    @rule(count=st.integers(1, 90))
    def step(self, count: int) -> None:
        cache, rows = self.caches[-1]
        if len(rows) + count > LIMIT:
            with pytest.raises(ContextOverflow):
                cache.stage(count)
        else:
            self._write(count)

    @precondition(lambda self: self.staged)
    @rule(count=st.integers(1, 90))
    def grow(self, count: int) -> None:
        self.caches[-1][0].extend(count)
        self._put_new(count)

    @precondition(lambda self: self.staged)
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        cache, rows = self.caches[-1]
        kept = data.draw(st.sets(st.integers(0, len(self.staged) - 1)).map(sorted))
        committed = data.draw(st.integers(0, len(kept)))
        cache.keep(kept, committed)
        rows += [self.staged[i] for i in kept[:committed]]
        self.staged = [self.staged[i] for i in kept[committed:]]

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
        self.marked[-1] = min(self.marked[-1], length)
        self.staged = []

    @rule()
    def fork(self) -> None:
        cache, rows = self.caches[-1]
        self.caches.append((cache.fork(), list(rows)))
        self.marked.append(self.marked[-1])
        self.staged = []

    @precondition(lambda self: not self.staged)
    @rule()
    def mark(self) -> None:
        cache, rows = self.caches[-1]
        cache.mark_predicted()
        self.marked[-1] = len(rows)

    @precondition(lambda self: self.staged)
    @rule()
    def refuse_to_mark_what_is_staged(self) -> None:
        with pytest.raises(ValueError, match="staged"):
            self.caches[-1][0].mark_predicted()

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
            assert cache.capacity % BLOCK == 0
            for layer, heads in enumerate(SPEC.num_kv_heads):
                key, value = cache.layer(layer)
                assert key.shape == value.shape == (cache.capacity, heads, 4)
                expected = contents(rows, layer, heads)
                assert (np.rint(key[: len(rows)]) == expected).all()
                assert (np.rint(value[: len(rows)]) == -expected).all()
                if cache is self.caches[-1][0]:
                    staged = slice(len(rows), len(rows) + len(self.staged))
                    expected = contents(self.staged, layer, heads)
                    assert (np.rint(key[staged]) == expected).all()
                    assert (np.rint(value[staged]) == -expected).all()
        if getattr(self, "caches", None):
            assert self.caches[-1][0].staged == len(self.staged)
            assert [cache.predicted for cache, _ in self.caches] == self.marked


class ContiguousLaws(Laws, RuleBasedStateMachine):
    make = staticmethod(lambda capacity: ContiguousCache(SPEC, capacity))


class ByHeadLaws(Laws, RuleBasedStateMachine):
    make = staticmethod(lambda capacity: ByHeadCache(SPEC, capacity))

    def put(self, cache: KvCache, layer: int, slots: list[int], rows: np.ndarray) -> None:
        """As a step gives them back."""
        assert isinstance(cache, ByHeadCache)
        by_head = rows.transpose(1, 0, 2)
        cache.put(layer, slots[0], by_head, -by_head)


class BlockedLaws(Laws, RuleBasedStateMachine):
    def put(self, cache: KvCache, layer: int, slots: list[int], rows: np.ndarray) -> None:
        assert isinstance(cache, BlockedCache)
        cache.write(layer, slots, rows, -rows)


class F32Laws(BlockedLaws):
    make = staticmethod(lambda capacity: BlockedCache(SPEC, "f32", capacity))


class F16Laws(BlockedLaws):
    make = staticmethod(lambda capacity: BlockedCache(SPEC, "f16", capacity))


class Int8Laws(BlockedLaws):
    make = staticmethod(lambda capacity: BlockedCache(SPEC, "int8", capacity))


FEW = settings(max_examples=15, stateful_step_count=30, deadline=None)
for laws in (ContiguousLaws, ByHeadLaws, F32Laws, F16Laws, Int8Laws):
    laws.TestCase.settings = FEW
TestContiguousCache = ContiguousLaws.TestCase
TestByHeadCache = ByHeadLaws.TestCase
TestF32Cache = F32Laws.TestCase
TestF16Cache = F16Laws.TestCase
TestInt8Cache = Int8Laws.TestCase


@pytest.mark.parametrize("cache", [ContiguousCache(SPEC), BlockedCache(SPEC)])
def test_a_cache_is_a_cache(cache: KvCache) -> None:
    assert isinstance(cache, KvCache)


def test_bytes_of_a_contiguous_cache() -> None:
    cache = ContiguousCache(SPEC)
    assert cache.nbytes == sum(a.nbytes for layer in range(2) for a in cache.layer(layer))


@pytest.mark.parametrize(("kv_type", "per_head"), [("f32", 32), ("f16", 16), ("int8", 16)])
def test_the_buffer_of_a_blocked_cache(kv_type: str, per_head: int) -> None:
    cache = BlockedCache(SPEC, kv_type, capacity=17)
    assert (cache.capacity, cache.kv_type, cache.length) == (32, kv_type, 0)
    assert cache.nbytes == cache.buffer.nbytes == 32 * 3 * per_head
    assert cache.buffer.ctypes.data % 64 == 0
    assert cache.buffer.flags.c_contiguous
    first, before = cache.buffer, cache.version
    cache.stage(33)
    assert (cache.capacity, cache.nbytes) == (64, 64 * 3 * per_head)
    assert cache.buffer is not first
    assert cache.version > before


def test_the_layout_of_a_blocked_cache() -> None:
    cache = BlockedCache(SPEC, "f16", capacity=32)
    keys = np.arange(8, dtype=np.float32).reshape(1, 2, 4)
    cache.write(0, [18], keys, keys + 100)
    floats = cache.buffer.view(np.float16)
    layer = floats[: 32 * 2 * 4 * 2]
    stored_keys = layer[: 32 * 2 * 4].reshape(2, 2, 4, 16)  # [block][head][width][slot of 16]
    stored_values = layer[32 * 2 * 4 :].reshape(32, 2, 4)  # [slot][head][width]
    assert (stored_keys[1, :, :, 2] == keys[0]).all()
    assert (stored_values[18] == keys[0] + 100).all()
    assert np.count_nonzero(floats) == 7 + 8
    cache.write(1, [0], keys[:, :1] + 1, keys[:, :1])
    assert (floats[32 * 2 * 4 * 2 :][: 4 * 16].reshape(4, 16)[:, 0] == [1, 2, 3, 4]).all()


def test_int8_keeps_a_scale_per_slot_and_head() -> None:
    cache = BlockedCache(SPEC, "int8")
    rows = np.random.default_rng(0).normal(size=(20, 2, 4)).astype(np.float32)
    rows *= np.logspace(-6, 6, 20, dtype=np.float32)[:, None, None]
    rows[3] = 0
    cache.write(0, range(20), rows, -rows)
    key, value = cache.layer(0)
    largest = np.abs(rows).max(axis=-1, keepdims=True)
    assert (np.abs(key[:20] - rows) <= largest / 254 * 1.001).all()
    assert (value[:20] == -key[:20]).all()


@pytest.mark.parametrize(("width", "large"), [(128, [63, 127]), (128, [0, 64]), (35, [16, 34])])
def test_a_large_column_of_a_key_blurs_its_band_only(width: int, large: list[int]) -> None:
    cache = BlockedCache(replace(SPEC, head_dim=width), "int8")
    rows = np.random.default_rng(0).normal(size=(20, 2, width)).astype(np.float32)
    rows[..., large] *= 300
    cache.write(0, range(20), rows, rows)
    error = np.abs(cache.layer(0)[0][:20] - rows).max(axis=(0, 1))
    half = (width + 1) // 2
    same_band = np.arange(width) % half // 16 == large[0] // 16
    assert large[1] % half == large[0]
    assert (error[~same_band] <= 5 / 254).all()
    assert error[same_band].max() > 1


def test_bits_of_rows_tell_caches_apart() -> None:
    for kv_type in KV_TYPES:
        a, b = BlockedCache(SPEC, kv_type), BlockedCache(SPEC, kv_type, capacity=64)
        for cache in (a, b):
            cache.stage(5)
            for layer, heads in enumerate(SPEC.num_kv_heads):
                rows = contents(list(range(5)), layer, heads)
                cache.write(layer, range(5), rows, -rows)
            cache.commit(range(5))
        assert all((x == y).all() for x, y in zip(a.rows(), b.rows(), strict=True))
        assert {x.shape[0] for x in a.rows()} == {5}
        b.write(1, [4], np.full((1, 1, 4), 9.0), np.full((1, 1, 4), 9.0))
        assert not all((x == y).all() for x, y in zip(a.rows(), b.rows(), strict=True))


def test_a_given_move_is_used_and_inherited() -> None:
    moves = []

    def move(cache: BlockedCache, source: np.ndarray, target: np.ndarray) -> None:
        moves.append((source.tolist(), target.tolist()))
        blocked.move_rows(cache, source, target)

    cache = BlockedCache(SPEC, move=move).fork()
    cache.stage(3)
    cache.commit(range(3))
    assert not moves
    cache.stage(6)
    cache.commit([0, 2, 5])
    assert moves == [([5, 8], [4, 5])]


def test_an_unknown_kv_type_is_refused() -> None:
    with pytest.raises(OptionError, match="kv_cache is 'f8'; it must be one of f16, f32, int8"):
        BlockedCache(SPEC, "f8")


def test_a_contiguous_cache_that_cannot_grow_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_blocked_cache_that_cannot_grow_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = BlockedCache(SPEC, capacity=BLOCK)
    cache.stage(3)
    cache.commit(range(3))
    buffer = cache.buffer

    def zeros(shape: int, dtype: type) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr("quickdraft.kvcache.blocked.np.zeros", zeros)
    with pytest.raises(MemoryError):
        cache.stage(2 * BLOCK)
    assert (cache.length, cache.capacity, cache.version, cache.staged) == (3, BLOCK, 0, 0)
    assert cache.buffer is buffer
