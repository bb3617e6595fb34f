"""The kernels that work row by row (norm, rope table, embedding, row move) against their twins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.kernel_calls import columns, floats, matrix, norm
from tiny.native import FORMATS, KV_TYPES, Cache, Kernels, Norm, isas, move_rows, needs_native

from quickdraft import hotpath_attention, hotpath_ops

pytestmark = needs_native

quick = settings(max_examples=40, deadline=None)
SEEDS = st.integers(0, 2**32)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


@quick
@given(SEEDS, st.sampled_from(["none", "rms", "layer"]), st.integers(1, 4), st.integers(1, 200))
def test_norm(seed: int, kind: str, heads: int, width: int) -> None:
    random = np.random.default_rng(seed)
    per_head, offset, rows = bool(random.random() < 0.5), int(random.integers(0, 3)), 5
    x = random.standard_normal((rows, offset + heads * width + 1)).astype(np.float32)
    how = norm(random, width * (heads if per_head else 1), kind)
    residual = floats(random, rows, heads * width) if random.random() < 0.5 else None
    y = Kernels().norm_rows(x, how, heads, offset, per_head, width, residual)
    form = hotpath_ops.Norm(kind, how.eps, how.weight, how.bias)
    expected = hotpath_ops.norm(x, form, heads, width, offset, residual)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    alone = [
        Kernels().norm_rows(
            x[[r]], how, heads, offset, per_head, width, None if residual is None else residual[[r]]
        )
        for r in range(rows)
    ]
    assert same_bits(np.concatenate(alone), y)


@pytest.mark.parametrize("isa", isas())
def test_threads_and_instruction_sets_agree_on_many_rows(isa: str) -> None:
    random = np.random.default_rng(5)
    x = random.standard_normal((70, 576)).astype(np.float32)
    how = Norm("rms", 1e-5, floats(random, 576))
    y = Kernels().norm_rows(x, how)
    assert same_bits(Kernels(isa, threads=2).norm_rows(x, how), y)


def test_the_mean_square_of_equal_values_is_exact() -> None:
    x = np.full((1, 1000), 3, np.float32)
    assert np.all(Kernels().norm_rows(x, Norm("rms", 0.0)) == 1)
    assert np.all(Kernels().norm_rows(x, Norm("layer", 1e-5)) == 0)


@quick
@given(SEEDS, st.integers(1, 70), st.sampled_from([1.0, 0.75]))
def test_rope_table(seed: int, pairs: int, factor: float) -> None:
    random = np.random.default_rng(seed)
    positions = random.integers(0, 2**20, 40)
    frequencies = (10_000.0 ** -(np.arange(pairs) / pairs)).astype(np.float32)
    table = Kernels(threads=2).rope_table(positions, frequencies, factor)
    expected = hotpath_ops.rope_table(positions, frequencies, factor)
    np.testing.assert_allclose(table, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("isa", isas())
def test_embedding_gives_every_value_to_the_last_bit(isa: str, format: str) -> None:
    random = np.random.default_rng(11)
    for _ in range(4):
        k, n = columns(random, format), int(random.integers(1, 60))
        table = matrix(random, format, n, k)
        ids = random.integers(0, n, 21)
        twin = hotpath_ops.Matrix(table.data, format, n, k)
        for scale in (1.0, 24.0, 0.1):
            y = Kernels(isa, threads=2).embed(table, ids, scale)
            assert same_bits(y, hotpath_ops.embed(ids, twin, scale))


@quick
@given(st.sampled_from(KV_TYPES), st.integers(0, 30), st.data())
def test_move_rows(kind: str, past: int, data: st.DataObject) -> None:
    layers = [Cache(kind, 64, heads, 40) for heads in (2, 1)]
    sizes = [layer.data.size for layer in layers]
    seed = data.draw(SEEDS)
    buffer = np.random.default_rng(seed).integers(0, 256, sum(sizes), np.uint8)
    source = sorted(data.draw(st.sets(st.integers(past, 63), max_size=12)))
    target = list(range(past, past + len(source)))
    before = buffer.copy()
    assert move_rows(buffer, layers, source, target) == 0
    kept = [*range(past), *source]
    for old, new in zip(rows_of(before, layers), rows_of(buffer, layers), strict=True):
        assert [new[slot] for slot in range(len(kept))] == [old[slot] for slot in kept]
        beyond = range(len(kept), 64)
        assert [new[slot] for slot in beyond] == [old[slot] for slot in beyond]


def rows_of(buffer: np.ndarray, layers: list[Cache]) -> list[list[bytes]]:
    """What each layer holds of each slot."""
    total, before, found = sum(layer.kv_heads for layer in layers), 0, []
    past = np.array([0, KV_TYPES.index(layers[0].kind), layers[0].capacity])
    for layer in layers:
        how = hotpath_attention.Attention(
            layer.kv_heads,
            layer.kv_heads,
            layer.head_dim,
            1.0,
            kv_heads_before=before,
            kv_heads_total=total,
        )
        view = hotpath_attention.layer_cache(buffer, how, past)
        found.append([slot_bytes(view, slot) for slot in range(layer.capacity)])
        before += layer.kv_heads
    return found


def slot_bytes(view: hotpath_attention.LayerCache, slot: int) -> bytes:
    block, lane = divmod(slot, 16)
    parts = [view.keys[block, lane], view.values[slot]]
    if view.key_scales is not None and view.value_scales is not None:
        parts += [view.key_scales[block, lane], view.value_scales[slot]]
    return b"".join(part.tobytes() for part in parts)
