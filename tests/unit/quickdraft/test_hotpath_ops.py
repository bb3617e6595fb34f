"""The twins of the hot path's ops, against the ops of the protocol and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraft import hotpath_ops, numpy_ops
from quickdraft.export.packing import pack, pack_gated
from quickdraft.export.quantize import quantize
from quickdraft.export.weights import Blocked, Dense
from quickdraft.hotpath_ops import Matrix, Norm

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def matrix(data: Dense | Blocked) -> Matrix:
    packed = pack(data)
    return Matrix(packed.data, packed.format, packed.n, packed.k)


def close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return ours.dtype == np.float32 and np.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["none", "silu", "gelu", "gelu_tanh", "relu"])
def test_a_dense_product_is_that_of_the_protocol(activation: str) -> None:
    x, weight, bias, residual, scale = (
        floats(5, 40), floats(20, 40), floats(20), floats(5, 20), floats(40)
    )  # fmt: skip
    before = Norm("rms", 1e-3, scale)
    y = hotpath_ops.q_linear(x, matrix(Dense(weight)), bias, residual, before, activation)
    expected = numpy_ops.linear(numpy_ops.rms_norm(x, scale, 1e-3), weight, bias)
    if activation != "none":
        expected = numpy_ops.activate(expected, activation)
    assert close(y, expected + residual)


def test_a_gated_product_is_that_of_the_protocol() -> None:
    x, gate, up, down = floats(3, 32), floats(40, 32), floats(40, 32), np.eye(40, dtype=np.float32)
    biases = (floats(40), floats(40), None)
    packed = pack_gated(Dense(gate), Dense(up))
    both = Matrix(packed.data, packed.format, packed.n, packed.k, gated=True)
    joined = np.concatenate([biases[0], biases[1]])
    y = hotpath_ops.q_linear(x, both, joined, activation="silu")
    assert close(y, numpy_ops.gated_mlp(x, gate, up, down, "silu", biases))


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("per_head", [False, True])
def test_norms_of_columns(kind: str, per_head: bool) -> None:
    x, residual = floats(4, 50), floats(4, 24)
    weight, bias = floats(24 if per_head else 8), floats(24 if per_head else 8)
    how = Norm(kind, 1e-3, weight, bias)
    y = hotpath_ops.norm(x, how, heads=3, width=8, offset=10, residual=residual)
    for head in range(3):
        part = x[:, 10 + 8 * head : 18 + 8 * head]
        own = slice(8 * head, 8 * head + 8) if per_head else slice(None)
        if kind == "rms":
            expected = numpy_ops.rms_norm(part, weight[own], 1e-3) + bias[own]
        else:
            expected = numpy_ops.layer_norm(part, weight[own], bias[own], 1e-3)
        assert close(y[:, 8 * head : 8 * head + 8], expected + residual[:, 8 * head : 8 * head + 8])


def test_rounding_by_hand() -> None:
    x = np.zeros((1, 96), np.float32)
    x[0, :3] = (-12.7, 0.05, 0.15)  # steps of 0.1: the halves go to even
    x[0, 32] = 1e-31
    x[0, 64] = np.inf
    codes, scale = hotpath_ops.round_activations(x)
    assert codes[0, 0, :3].tolist() == [-127, 0, 2]
    assert scale[0, 0] == pytest.approx(0.1)
    assert not codes[0, 1].any()
    assert scale[0, 1] == 0
    assert np.isnan(scale[0, 2])


@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-20, 20))
def test_a_coarse_group_keeps_fourteen_bits(seed: int, exponent: int) -> None:
    x = (np.random.default_rng(seed).uniform(0.5, 1, (2, 256)) * 2.0**exponent).astype(np.float32)
    x[1, 64:96] *= 100
    lost = np.abs(hotpath_ops.rounded(x) - x).reshape(2, 8, 32).max(-1)
    largest = np.abs(x).reshape(2, 8, 32).max(-1)
    assert (lost <= 0.51 / 127 * largest).all()
    assert (lost[0] > 0.3 / 127 * largest[0]).all()
    assert lost[1, 2] <= 0.51 / 127**2 * largest[1, 2]


def test_a_quantised_product_rounds_its_input() -> None:
    x, blocks = floats(3, 64), quantize(floats(24, 64), 4)
    y, exact = hotpath_ops.q_linear(x, matrix(blocks)), x @ blocks.to_dense().T
    assert close(y, (hotpath_ops.rounded(x) @ blocks.to_dense().T).astype(np.float32))
    assert 0 < np.abs(y - exact).max() < 0.2


def test_embedding_reads_rows_of_blocks() -> None:
    blocks = quantize(floats(50, 64), 8)
    ids = np.array([49, 0, 17, 17])
    assert np.array_equal(hotpath_ops.embed(ids, matrix(blocks), 2.0), 2 * blocks.to_dense()[ids])


def test_rope_table() -> None:
    positions, frequencies = np.array([0, 3, 1000]), np.array([1.0, 0.01], np.float32)
    table = hotpath_ops.rope_table(positions, frequencies, 1.5)
    assert table.shape == (3, 2, 2)
    assert table[0].tolist() == [[1.5, 1.5], [0, 0]]
    assert table[2, 1, 1] == pytest.approx(1.5 * np.sin(10), rel=1e-5)


def test_equal_logits_are_ordered_by_id() -> None:
    weight = np.zeros((6, 4), np.float32)
    weight[[1, 4], 0], weight[2, 0] = 1, 2
    x = np.array([[9, 0, 0, 0], [3, 0, 0, 0]], np.float32)
    values, ids, log_sum, logits = hotpath_ops.head_top_k(
        x, np.array([1]), matrix(Dense(weight)), top=4, softcap=5.0
    )
    capped = 5 * np.tanh(np.array([6, 3, 3, 0], np.float32) / 5)
    assert ids.tolist() == [[2, 1, 4, 0]]
    assert close(values, capped[None])
    assert logits.shape == (1, 6)
    assert log_sum[0] == pytest.approx(np.log(np.exp(logits).sum()))
