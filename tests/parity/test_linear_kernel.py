"""Linear layers and the output head: right, and the same bits however many rows share a call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import native
from tiny.native import Kernels, Matrix, needs_native

from quickdraft import hotpath_ops

pytestmark = needs_native

ISAS = native.isas()
SHAPES = ((40, 64), (16, 256), (33, 512))
QUANTISED = tuple(f for f in native.FORMATS if f not in ("f32", "f16"))


def stored(rng: np.random.Generator, format: str, n: int, k: int, **options: Any) -> Matrix:
    """A matrix of random codes; scales and minimums are small halves and bytes."""
    gated = options.get("gated", False)
    blocks = -(-n // 16) * (2 if gated else 1)
    size = native.record_bytes(format, k)
    data = rng.integers(0, 256, (blocks, size), np.uint8)
    if format == "f32":
        data = rng.normal(size=(blocks, size // 4)).astype("<f4").view(np.uint8)
    elif format == "f16":
        data = rng.normal(size=(blocks, size // 2)).astype("<f2").view(np.uint8)
    else:
        _small_scales(rng, format, data, k)
    return Matrix(format, data, n, k, **options)


def _small_scales(rng: np.random.Generator, format: str, data: np.ndarray, k: int) -> None:
    codes = k // 16 * 192 if format == "w6k" else k // 32 * (256 if "4" in format else 512)
    if format in ("w8m", "w8k"):
        data[:, :codes] %= 32
    integers = {"w4k": k, "w8k": k, "w6k": k}.get(format, 0)  # bytes of integer scales
    rest = data[:, codes + integers :]
    halves = rng.normal(scale=0.02, size=(len(data), rest.shape[1] // 2)).astype("<f2")
    rest[:] = halves.view(np.uint8)


def suits(format: str, k: int) -> bool:
    return native.record_bytes(format, k) > 0


def twin(matrix: Matrix) -> hotpath_ops.Matrix:
    return hotpath_ops.Matrix(matrix.data, matrix.format, matrix.n, matrix.k, matrix.gated)


def twin_norm(norm: native.Norm | None) -> hotpath_ops.Norm:
    return (
        hotpath_ops.Norm(norm.kind, norm.eps, norm.weight, norm.bias)
        if norm
        else (hotpath_ops.Norm())
    )


def close(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * max(1.0, float(np.abs(b).max())))


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.tobytes() == b.tobytes()


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "coarse": {"outliers": True},
    "gated": {"gated": True, "activation": "silu"},
    "everything": {"bias": True, "residual": True, "norm": "layer", "activation": "gelu_tanh"},
    "rms": {"norm": "rms", "residual": True},
    "gated with bias": {"gated": True, "bias": True, "activation": "gelu", "norm": "rms"},
}


def make(
    rng: np.random.Generator, format: str, n: int, k: int, rows: int, case: dict[str, Any]
) -> tuple[np.ndarray, Matrix, dict[str, Any]]:
    gated = case.get("gated", False)
    matrix = stored(rng, format, n, k, gated=gated)
    if case.get("bias"):
        matrix.bias = rng.normal(size=n * (2 if gated else 1)).astype(np.float32)
    options: dict[str, Any] = {"activation": case.get("activation", "none")}
    if "norm" in case:
        weight, bias = rng.normal(size=(2, k)).astype(np.float32)
        options["norm"] = native.Norm(case["norm"], 1e-5, weight, bias)
    if case.get("residual"):
        options["residual"] = rng.normal(size=(rows, n)).astype(np.float32)
    x = rng.normal(size=(rows, k)).astype(np.float32)
    if case.get("outliers"):  # a tenth of the values, as norms in real models leave them
        x *= np.where(rng.random(x.shape) < 0.1, 30, 1).astype(np.float32)
        x[:, rng.integers(0, k)] *= 100
    return x, matrix, options


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("format", native.FORMATS)
def test_against_the_twin(format: str, case: str) -> None:
    rng = np.random.default_rng(1)
    for n, k in SHAPES:
        if not suits(format, k):
            continue
        x, matrix, options = make(rng, format, n, k, 5, CASES[case])
        x[1, 32:64] = 0
        x[2] *= 1e4
        expected = hotpath_ops.q_linear(
            x,
            twin(matrix),
            matrix.bias,
            options.get("residual"),
            twin_norm(options.get("norm")),
            options["activation"],
        )
        close(Kernels().linear(x, matrix, **options), expected)


@pytest.mark.parametrize("format", native.FORMATS)
@settings(max_examples=12, deadline=None)
@given(
    case=st.sampled_from(sorted(CASES)),
    rows=st.integers(1, 40),
    shape=st.sampled_from(SHAPES),
    isa=st.sampled_from(ISAS or [""]),
    seed=st.integers(0, 99),
)
def test_a_row_does_not_depend_on_the_others(
    format: str, case: str, rows: int, shape: tuple[int, int], isa: str, seed: int
) -> None:
    n, k = shape
    if not suits(format, k):
        return
    rng = np.random.default_rng(seed)
    x, matrix, options = make(rng, format, n, k, rows, CASES[case])
    residual = options.pop("residual", None)
    together = Kernels(isa, threads=2).linear(x, matrix, residual=residual, **options)
    row = int(rng.integers(rows))
    one = None if residual is None else residual[row : row + 1]
    alone = Kernels("portable").linear(x[row : row + 1], matrix, residual=one, **options)
    assert same_bits(together[row : row + 1], alone)


@pytest.mark.parametrize("format", QUANTISED)
def test_what_is_not_a_number_shows(format: str) -> None:
    rng = np.random.default_rng(2)
    matrix = stored(rng, format, 16, 256)
    x = rng.normal(size=(4, 256)).astype(np.float32)
    x[1, 200], x[2, 3], x[3, 40] = np.nan, np.inf, -np.inf
    for isa in ISAS:
        y = Kernels(isa).linear(x, matrix)
        assert np.isfinite(y[0]).all()
        assert not np.isfinite(y[1:]).any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("n", "top"), [(40, 40), (1000, 64), (40000, 64), (16385, 1)])
@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_head(isa: str, n: int, top: int, softcap: float) -> None:
    rng = np.random.default_rng(3)
    matrix = stored(rng, "w8", n, 64)
    x = rng.normal(size=(6, 64)).astype(np.float32)
    rows = np.array([5, 0, 3], np.int64)
    norm = native.Norm("rms", 1e-6, rng.normal(size=64).astype(np.float32))
    values, ids, log_sum, logits = Kernels(isa).head(x, matrix, rows, top, norm, softcap)
    before = twin_norm(norm)
    expected = hotpath_ops.head_top_k(x, rows, twin(matrix), top, None, before, softcap)
    close(logits, expected[3])
    close(log_sum, expected[2])
    order = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    np.testing.assert_array_equal(ids, order)
    assert same_bits(values, np.take_along_axis(logits, order, 1))
    portable = Kernels("portable", threads=2).head(x, matrix, rows, top, norm, softcap)
    for ours, theirs in zip((values, ids, log_sum, logits), portable, strict=True):
        assert same_bits(ours, theirs)


def test_head_breaks_ties_by_id_and_shows_nan() -> None:
    rng = np.random.default_rng(4)
    matrix = stored(rng, "f32", 300, 16)
    matrix.data[:] = 0
    x = np.ones((2, 16), np.float32)
    x[1] = np.nan
    values, ids, log_sum, _ = Kernels().head(x, matrix, np.arange(2), 64)
    np.testing.assert_array_equal(ids[0], np.arange(64))
    np.testing.assert_allclose(log_sum[0], np.log(300), rtol=1e-6)
    assert np.isnan(values[1, 0])
    assert np.isnan(log_sum[1])


def test_more_rows_than_one_pass_of_the_head() -> None:
    rng = np.random.default_rng(5)
    matrix = stored(rng, "w4m", 200, 64)
    x = rng.normal(size=(70, 64)).astype(np.float32)
    rows = rng.permutation(70)
    _, ids, _, logits = Kernels(threads=2).head(x, matrix, rows, 8)
    assert same_bits(logits, Kernels().linear(x, matrix)[rows])
    np.testing.assert_array_equal(ids[:, 0], logits.argmax(axis=1))
