"""The attention kernel: against its NumPy twin, and bit for bit against itself.

A row's bits must be those it has when its path is decoded one row at a time, whatever else is in
the step or in the cache, however many threads and whichever instruction set compute it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.kernel_calls import tree
from tiny.native import KV_TYPES, Cache, Kernels, Scores, Step, isas, needs_native

from quickdraft import hotpath_attention as twin

pytestmark = needs_native

HEADS = ((1, 1), (3, 3), (4, 2), (9, 3), (7, 1), (50, 1))
HEAD_DIMS = (2, 16, 20, 33, 64, 70, 96)
LENGTHS = st.one_of(st.integers(0, 40), st.integers(250, 262), st.integers(505, 530))
quick = settings(max_examples=40, deadline=None)


@dataclass
class Case:
    """One layer with `past` committed rows and a tree of rows to attend; all values random."""

    cache: Cache
    heads: int
    step: Step
    scores: Scores
    qkv: tuple[np.ndarray, np.ndarray, np.ndarray]

    def attend(self, isa: str | None = None, threads: int = 1) -> tuple[np.ndarray, Cache]:
        """The rows' results, and the cache afterwards."""
        cache = copy(self.cache)
        y = Kernels(isa, threads).attention(*self.qkv, self.step, cache, self.scores)
        return y, cache

    def path(self, row: int) -> list[int]:
        """The rows on the way to a row, itself last."""
        if self.step.ancestors is None:
            return list(range(row + 1))
        return [int(node) for node in self.step.ancestors[row] if node >= 0]

    def decode(self, rows: list[int], isa: str | None = None) -> np.ndarray:
        """The last of these rows, each in a step of its own after the one before."""
        cache, y = copy(self.cache), np.zeros((1, 0), np.float32)
        for depth, row in enumerate(rows):
            place = Step(np.array([self.step.past + depth]), self.step.past + depth)
            scores = at_rows(self.scores, [row])
            y = Kernels(isa).attention(*(x[[row]] for x in self.qkv), place, cache, scores)
        return y[0]


def copy(cache: Cache) -> Cache:
    return Cache(cache.kind, cache.capacity, cache.kv_heads, cache.head_dim, cache.data.copy())


def at_rows(scores: Scores, rows: list[int] | slice) -> Scores:
    rope = None if scores.rope is None else np.ascontiguousarray(scores.rope[rows])
    return replace(scores, rope=rope)


@st.composite
def cases(draw: st.DrawFn, chain: bool = False, most_rows: int = 20) -> Case:
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    heads, kv_heads = draw(st.sampled_from(HEADS))
    dim, past = draw(st.sampled_from(HEAD_DIMS)), draw(LENGTHS)
    rows = draw(st.integers(1, most_rows))
    depths, ancestors = tree(random, rows)
    step = Step(past + depths, past, ancestors)
    if chain:
        step = Step(past + np.arange(rows), past)
    pairs = draw(st.sampled_from([0, dim // 2, dim // 4]))
    scores = Scores(
        scale=dim**-0.5,
        window=draw(st.sampled_from([0, 1, 17, 256, 300])),
        softcap=draw(st.sampled_from([0.0, 20.0])),
        sinks=normal(random, heads) if draw(st.booleans()) else None,
        rope=normal(random, rows, 2, pairs) if pairs else None,
        relative=draw(st.one_of(st.none(), st.just(relative(random, heads)))),
    )
    capacity = (past + rows + 15) // 16 * 16 + draw(st.sampled_from([0, 32]))
    cache = Cache(draw(st.sampled_from(KV_TYPES)), capacity, kv_heads, dim)
    before = tuple(normal(random, past, columns * dim) for columns in (heads, kv_heads, kv_heads))
    if past:
        Kernels().attention(*before, Step(np.arange(past), 0), cache)
    qkv = tuple(normal(random, rows, columns * dim) for columns in (heads, kv_heads, kv_heads))
    return Case(cache, heads, step, scores, qkv)


def relative(random: np.random.Generator, heads: int) -> np.ndarray:
    """What relative positions add, as far as a random reach."""
    return normal(random, heads, 2 * int(random.choice([0, 3, 20, 128])) + 1)


def normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape).astype(np.float32)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def by_the_twin(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The rows' results, and the bytes of the cache afterwards."""
    cache, scores, step = case.cache, case.scores, case.step
    assert step.ancestors is not None
    how = twin.Attention(
        case.heads, cache.kv_heads, cache.head_dim, scores.scale, scores.window, scores.softcap
    )
    if scores.relative is not None:
        how = replace(how, reach=scores.relative.shape[1] // 2)
    past = np.array([step.past, KV_TYPES.index(cache.kind), cache.capacity])
    rows = twin.Step(step.positions, step.ancestors, past, scores.rope)
    data = cache.data.copy()
    return twin.tree_attention(case.qkv, rows, data, how, scores.sinks, scores.relative), data


@quick
@given(cases())
def test_against_the_twin(case: Case) -> None:
    expected, data = by_the_twin(case)
    y, after = case.attend()
    assert same_bits(after.data, data)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=2e-5)


@quick
@given(cases(), st.integers(1, 3))
def test_instruction_sets_and_threads_agree(case: Case, threads: int) -> None:
    y, cache = case.attend()
    for isa in isas():
        other, other_cache = case.attend(isa, threads)
        assert same_bits(y, other), isa
        assert same_bits(cache.data, other_cache.data), isa


@quick
@given(cases(most_rows=120), st.integers(1, 3), st.data())
def test_writing_alone_stores_the_same_bits(case: Case, threads: int, data: st.DataObject) -> None:
    """In one step or two, with every instruction set."""
    _, expected = case.attend()
    middle = data.draw(st.integers(0, len(case.qkv[0])))
    for isa in isas():
        cache, kernels = copy(case.cache), Kernels(isa, threads)
        for part in (slice(0, middle), slice(middle, None)):
            k, v = (x[part] for x in case.qkv[1:])
            rope = at_rows(case.scores, part).rope
            kernels.kv_write(k, v, case.step.past + part.start, cache, rope)
        assert same_bits(cache.data, expected.data), isa


@quick
@given(cases(), st.data())
def test_a_row_of_a_tree_is_its_path_decoded(case: Case, data: st.DataObject) -> None:
    y, _ = case.attend()
    row = data.draw(st.integers(0, len(y) - 1))
    assert same_bits(y[row], case.decode(case.path(row)))


@quick
@given(cases(), st.data())
def test_a_tree_may_grow_over_several_steps(case: Case, data: st.DataObject) -> None:
    y, after = case.attend()
    ancestors, first = case.step.ancestors, 0
    assert ancestors is not None
    grown, by_twin = copy(case.cache), copy(case.cache)
    while first < len(y):
        end = data.draw(st.integers(first + 1, len(y)))
        here = slice(first, end)
        step = Step(case.step.positions[here], case.step.past, ancestors[here], first)
        part = replace(
            case,
            cache=grown,
            step=step,
            qkv=tuple(x[here] for x in case.qkv),
            scores=at_rows(case.scores, here),
        )
        rows, grown = part.attend(data.draw(st.sampled_from(isas())), threads=2)
        assert same_bits(rows, y[here])
        expected, by_twin.data = by_the_twin(replace(part, cache=by_twin))
        np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=2e-5)
        first = end
    assert same_bits(grown.data, after.data)
    assert same_bits(by_twin.data, after.data)


@quick
@given(cases(chain=True, most_rows=120), st.data())
def test_a_chain_is_its_chunks(case: Case, data: st.DataObject) -> None:
    y, after = case.attend(threads=2)
    cache, first = copy(case.cache), 0
    while first < len(y):
        end = data.draw(st.integers(first + 1, len(y)))
        here, past = slice(first, end), case.step.past + first
        step = Step(case.step.positions[here], past)
        part = Kernels().attention(
            *(x[here] for x in case.qkv), step, cache, at_rows(case.scores, here)
        )
        assert same_bits(part, y[here])
        first = end
    assert same_bits(cache.data, after.data)


@quick
@given(cases(), st.integers(0, 255))
def test_what_lies_in_unused_slots_is_without_effect(case: Case, byte: int) -> None:
    y, _ = case.attend()
    for filler in (byte, 0xFF, 0x7C):  # 0xFF.. is NaN in every float type, 0x7C7C is NaN too
        used = copy(case.cache)
        case.cache.data[:] = filler
        keep(used, case.cache, case.step.past)
        assert same_bits(y, case.attend()[0])
        case.cache = used


def keep(source: Cache, target: Cache, slots: int) -> None:
    """Copy the first slots; how they are stored is the twin's business."""
    how = twin.Attention(1, source.kv_heads, source.head_dim, 1.0)
    past = np.array([0, KV_TYPES.index(source.kind), source.capacity])
    a, b = (twin.layer_cache(cache.data, how, past) for cache in (source, target))
    blocks, lanes = np.divmod(np.arange(slots), 16)
    b.keys[blocks, lanes] = a.keys[blocks, lanes]
    b.values[:slots] = a.values[:slots]
    if a.key_scales is not None and b.key_scales is not None:
        b.key_scales[blocks, lanes] = a.key_scales[blocks, lanes]
    if a.value_scales is not None and b.value_scales is not None:
        b.value_scales[:slots] = a.value_scales[:slots]


@quick
@given(cases(), st.data())
def test_a_row_that_is_not_finite_spoils_its_descendants_only(
    case: Case, data: st.DataObject
) -> None:
    y, _ = case.attend()
    bad = data.draw(st.integers(0, len(y) - 1))
    for x in case.qkv:
        x[bad, data.draw(st.integers(0, x.shape[1] - 1))] = data.draw(
            st.sampled_from([np.nan, np.inf, -np.inf])
        )
    spoilt, _ = case.attend()
    for row in range(len(y)):
        if bad not in case.path(row):
            assert same_bits(spoilt[row], y[row])


@quick
@given(cases(), st.integers(0, 10**6), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_int8_codes_of_what_is_not_finite(case: Case, at: int, value: float) -> None:
    case.cache = Cache("int8", case.cache.capacity, case.cache.kv_heads, case.cache.head_dim)
    for x in case.qkv[1:]:
        x.flat[at % x.size] = value
    with np.errstate(invalid="ignore"):
        _, data = by_the_twin(case)
    for isa in isas():
        assert same_bits(case.attend(isa)[1].data, data), isa


@pytest.mark.parametrize("kind", KV_TYPES)
def test_segments_as_tasks_change_nothing(kind: str) -> None:
    """Few rows over a long context are cut along it, many rows are not."""
    random, rows, dim = np.random.default_rng(3), 1300, 16
    q, k, v = (normal(random, rows, heads * dim) for heads in (3, 1, 1))
    together = Cache(kind, 1312, 1, dim)
    y = Kernels(threads=2).attention(q, k, v, Step(np.arange(rows), 0), together)
    for first, count in ((255, 1), (256, 3), (1000, 40), (1299, 1)):
        here = slice(first, first + count)
        cache = copy(together)
        step = Step(np.arange(first, first + count), first)
        for threads in (1, 3):
            part = Kernels(threads=threads).attention(q[here], k[here], v[here], step, cache)
            assert same_bits(part, y[here])
