"""The attention kernel where every row sees all of a source: an encoder, and what reads its memory.

A row's bits must not depend on the rows beside it, on threads, or on the instruction set.
"""

from __future__ import annotations

import numpy as np
import pytest
from tiny.native import KV_TYPES, Cache, Kernels, NativeError, Scores, Step, isas, needs_native

from quickdraft import hotpath_attention as twin

pytestmark = needs_native

SHAPES = ((4, 2, 20, 1), (3, 3, 64, 37), (2, 1, 16, 300))
"""heads, kv_heads, head_dim, rows of the source: the last one has two segments."""


def normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape).astype(np.float32)


def capacity(rows: int) -> int:
    return -(-rows // 16) * 16


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reach", [None, 0, 5, 128])
def test_encoder(shape: tuple[int, int, int, int], reach: int | None) -> None:
    heads, kv_heads, dim, rows = shape
    random = np.random.default_rng(rows)
    q, k, v = (normal(random, rows, count * dim) for count in (heads, kv_heads, kv_heads))
    relative = None if reach is None else 3 * normal(random, heads, 2 * reach + 1)
    rope = random.uniform(-1, 1, (rows, 2, dim // 4)).astype(np.float32)
    scores = Scores(dim**-0.5, rope=rope, relative=relative)
    how = twin.Attention(heads, kv_heads, dim, scores.scale, reach=reach or 0)
    expected = twin.encode_attention((q, k, v), how, rope, relative)
    found = [
        Kernels(isa, threads).encode(q, k, v, Cache("f32", capacity(rows), kv_heads, dim), scores)
        for isa in isas()
        for threads in (1, 3)
    ]
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=2e-5)
    assert all(same_bits(found[0], other) for other in found)


def filled(kind: str, shape: tuple[int, int, int, int], random: np.random.Generator) -> Cache:
    """A memory; slots past the source are NaN in every float type."""
    _, kv_heads, dim, rows = shape
    memory = Cache(kind, capacity(rows) + 16, kv_heads, dim)
    memory.data[:] = 0xFF
    k, v = (normal(random, rows, kv_heads * dim) for _ in "kv")
    Kernels().kv_write(k, v, 0, memory)
    return memory


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KV_TYPES)
def test_memory(shape: tuple[int, int, int, int], kind: str) -> None:
    heads, kv_heads, dim, rows = shape
    random = np.random.default_rng(rows)
    memory, q = filled(kind, shape, random), normal(random, 40, heads * dim)
    before, scores = memory.data.copy(), Scores(dim**-0.5)
    source = np.array([rows, KV_TYPES.index(kind), memory.capacity])
    how = twin.Attention(heads, kv_heads, dim, scores.scale)
    expected = twin.cross_attention(q, source, before, how)
    found = Kernels().cross(q, memory, rows, scores)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)
    for isa in isas():
        for here in (slice(0, 40), slice(0, 1), slice(7, 24), slice(39, 40)):
            part = Kernels(isa, 2).cross(q[here], memory, rows, scores)
            assert same_bits(part, found[here]), (isa, here)
    assert same_bits(memory.data, before)


def test_a_memory_is_what_a_row_after_it_would_see() -> None:
    """Causal attention of a row that sees the same slots, its own among them, has the same bits."""
    random, rows, dim = np.random.default_rng(2), 20, 32
    cache = Cache("f16", 32, 1, dim)
    k, v, q = (normal(random, rows, dim) for _ in "kvq")
    step = Step(np.arange(rows), 0)
    last = Kernels().attention(q, k, v, step, cache, Scores(0.3))[-1:]
    assert same_bits(Kernels().cross(q[-1:], cache, rows, Scores(0.3)), last)


def test_what_a_memory_cannot_hold_is_refused() -> None:
    memory, q = Cache("f32", 16, 1, 8), np.zeros((1, 8), np.float32)
    for seen, scores in ((17, Scores()), (-1, Scores()), (4, Scores(window=2))):
        with pytest.raises(NativeError):
            Kernels().cross(q, memory, seen, scores)
