"""The meaning of the ops, against loops that spell it out in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quickdraft import numpy_ops

Floats = NDArray[np.float32]


def values(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_close(ours: Floats, spelled: list[list[float]], tolerance: float = 1e-5) -> None:
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, np.array(spelled), atol=tolerance, rtol=tolerance)


def test_linear() -> None:
    x, weight, bias = values(0, 3, 4), values(1, 5, 4), values(2, 5)
    spelled = [
        [
            sum(float(row[i]) * float(w[i]) for i in range(4)) + float(b)
            for w, b in zip(weight, bias, strict=True)
        ]
        for row in x
    ]
    assert_close(numpy_ops.linear(x, weight, bias), spelled)
    assert_close(numpy_ops.linear(x, weight) + bias, spelled)


def test_embed_and_take_rows() -> None:
    table = values(0, 7, 3)
    ids = np.array([6, 0, 6])
    assert np.array_equal(numpy_ops.embed(ids, table), table[[6, 0, 6]])
    assert np.array_equal(numpy_ops.take_rows(table, np.array([2])), table[2:3])


def spell_norm(
    part: Floats, eps: float, centre: bool, weight: Floats | None, bias: Floats | None
) -> list[float]:
    mean = sum(map(float, part)) / len(part) if centre else 0.0
    square = sum((float(v) - mean) ** 2 for v in part) / len(part)
    normed = [(float(v) - mean) / math.sqrt(square + eps) for v in part]
    if weight is not None:
        normed = [v * float(w) for v, w in zip(normed, weight, strict=True)]
    if bias is not None:
        normed = [v + float(b) for v, b in zip(normed, bias, strict=True)]
    return normed


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_rms_norm(heads: int, weighted: bool) -> None:
    x, each = values(0, 3, 8), 8 // heads
    weight = values(1, each) if weighted else None
    spelled = [
        [v for part in row.reshape(heads, each) for v in spell_norm(part, 0.1, False, weight, None)]
        for row in x
    ]
    assert_close(numpy_ops.rms_norm(x, weight, 0.1, heads), spelled)


@pytest.mark.parametrize("per_head", [False, True])
def test_layer_norm(per_head: bool) -> None:
    x = values(0, 3, 8)
    weight, bias = (values(i, 8 if per_head else 4) for i in (1, 2))
    weights, biases = (np.resize(each, (2, 4)) for each in (weight, bias))
    spelled = [
        [
            v
            for head, part in enumerate(row.reshape(2, 4))
            for v in spell_norm(part, 0.1, True, weights[head], biases[head])
        ]
        for row in x
    ]
    assert_close(numpy_ops.layer_norm(x, weight, bias, 0.1, heads=2), spelled)
    plain = [spell_norm(row, 0.1, True, None, None) for row in x]
    assert_close(numpy_ops.layer_norm(x, None, None, 0.1), plain)


@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_rope_turns_pairs_as_complex_numbers(pairs: int) -> None:
    heads, width = 2, 6
    x, positions = values(0, 4, heads * width), np.array([0, 3, 3, 11])
    frequencies = np.array([1.0, 0.3, 0.01][:pairs], np.float32)
    spelled = []
    for row, position in zip(x.reshape(4, heads, width), positions, strict=True):
        turned = row.astype(float).copy()
        for head in turned:
            for i, frequency in enumerate(frequencies):
                angle = position * float(frequency)
                point = complex(head[i], head[i + pairs])
                point *= 1.5 * complex(math.cos(angle), math.sin(angle))
                head[i], head[i + pairs] = point.real, point.imag
        spelled.append(turned.ravel())
    assert_close(numpy_ops.rope(x, positions, frequencies, 1.5, heads), spelled)


def test_stage_writes_its_rows_and_no_others() -> None:
    keys, held, k, v = values(0, 7, 2, 4), values(1, 7, 2, 4), values(2, 3, 8), values(3, 3, 8)
    slots, before = np.array([5, 0, 2]), (keys.copy(), held.copy())
    numpy_ops.stage(k, v, (keys, held), slots)
    for array, rows, old in zip((keys, held), (k, v), before, strict=True):
        assert np.array_equal(array[slots].reshape(3, -1), rows)
        assert np.array_equal(np.delete(array, slots, 0), np.delete(old, slots, 0))


def test_stack_puts_rows_one_after_another() -> None:
    parts = [values(seed, rows, 3) for seed, rows in enumerate((2, 1, 4))]
    stacked = numpy_ops.stack(parts)
    assert stacked.shape == (7, 3)
    assert np.array_equal(stacked[2], parts[1][0])
    assert np.array_equal(stacked[3:], parts[2])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 5),
    st.sampled_from([None, 0.5]),
    st.integers(0, 1000),
)
def test_attend(
    n: int, kv_heads: int, group: int, length: int, softcap: float | None, seed: int
) -> None:
    width, heads, slots = 4, kv_heads * group, 12
    q = values(seed, n, heads * width)
    k, v = values(seed + 1, n, kv_heads * width), values(seed + 2, n, kv_heads * width)
    keys, cache_values = (values(seed + i, slots, kv_heads, width) for i in (3, 4))
    # What lies after the visible slots must not matter, nor what lay where rows are staged.
    places = np.arange(length, length + n)
    seen = length + n + 1
    allowed = np.random.default_rng(seed).random((n, seen)) < 0.6
    allowed[np.arange(n), places] = True
    bias = np.where(allowed, 0, np.finfo(np.float32).min).astype(np.float32)
    before = keys.copy()
    ours = numpy_ops.attend(q, k, v, (keys, cache_values), places, bias, 0.7, softcap)
    assert np.array_equal(keys[places].reshape(n, -1), k)
    assert np.array_equal(np.delete(keys, places, 0), np.delete(before, places, 0))
    spelled = []
    for i in range(n):
        row = []
        for head in range(heads):
            query = q[i].reshape(heads, width)[head].astype(float)
            scores = []
            for slot in np.flatnonzero(allowed[i]):
                score = 0.7 * float(query @ keys[slot, head // group].astype(float))
                capped = score if softcap is None else softcap * math.tanh(score / softcap)
                scores.append((math.exp(capped), cache_values[slot, head // group].astype(float)))
            total = sum(weight for weight, _ in scores)
            row.extend(sum(weight * value for weight, value in scores) / total)
        spelled.append(row)
    assert_close(ours, spelled)


@pytest.mark.parametrize(
    ("kind", "spell"),
    [
        ("silu", lambda x: x / (1 + math.exp(-x))),
        ("gelu", lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2)))),
        (
            "gelu_tanh",
            lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        ),
        ("relu", lambda x: max(x, 0.0)),
    ],
)
def test_activations(kind: str, spell) -> None:  # type: ignore[no-untyped-def]
    x = np.concatenate([values(0, 1, 50)[0] * 3, [-700, -30, 0, 30]]).astype(np.float32)[None]
    assert_close(numpy_ops.activate(x, kind), [[spell(float(v)) for v in x[0]]])


def test_silu_far_out_is_zero_without_a_warning() -> None:
    assert numpy_ops.activate(np.array([[-1e30]], np.float32), "silu") == 0


def test_pointwise() -> None:
    a, b = values(0, 2, 3), values(1, 2, 3)
    assert np.array_equal(numpy_ops.add(a, b), a + b)
    assert np.array_equal(numpy_ops.multiply(a, b), a * b)
    assert_close(numpy_ops.scale(a, 0.1), [[float(v) * 0.1 for v in row] for row in a])
    spelled = [[2 * math.tanh(float(v) / 2) for v in row] for row in a]
    assert_close(numpy_ops.softcap(a, 2.0), spelled)


def test_gated_mlp() -> None:
    x, gate, up, down = values(0, 2, 3), values(1, 4, 3), values(2, 4, 3), values(3, 3, 4)
    biases = (values(4, 4), values(5, 4), values(6, 3))
    opened = x @ gate.T + biases[0]
    inner = opened / (1 + np.exp(-opened)) * (x @ up.T + biases[1])
    ours = numpy_ops.gated_mlp(x, gate, up, down, "silu", biases)
    assert_close(ours, (inner @ down.T + biases[2]).tolist())
