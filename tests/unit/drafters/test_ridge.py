"""Ridge regression from sums: planted maps are found, chunks and order do not matter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quickdraft.drafters.train.ridge import NormalEquations, solve_ridge

GROUPS = {"key": slice(0, 3), "value": slice(3, 5)}


def planted(
    seed: int, rows: int, inputs: int = 6, noise: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, y and the affine map between them; inputs differ much in mean and spread."""
    random = np.random.default_rng(seed)
    weight, bias = random.normal(size=(5, inputs)), random.normal(size=5) * 10
    # The map stays: only the rows depend on their number.
    x = random.normal(size=(rows, inputs)) * 10.0 ** np.arange(-2, inputs - 2) + 50
    y = x @ weight.T + bias + noise * random.normal(size=(rows, 5))
    return x.astype(np.float32), y.astype(np.float32), weight, bias


def gathered(x: np.ndarray, y: np.ndarray, chunk: int, weights: np.ndarray | None = None):
    sums = NormalEquations(x.shape[1], y.shape[1])
    for start in range(0, len(x), chunk):
        part = slice(start, start + chunk)
        sums.add(x[part], y[part], None if weights is None else weights[part])
    return sums


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), chunk=st.integers(7, 400))
def test_a_planted_map_is_found(seed: int, chunk: int) -> None:
    x, y, weight, _ = planted(seed, 400)
    found = solve_ridge(gathered(x[:300], y[:300], chunk), gathered(x[300:], y[300:], 50), GROUPS)
    predicted = x[300:] @ found.weight.T + found.bias
    assert np.abs(predicted - y[300:]).max() < 1e-3 * np.abs(y).max()
    assert max(found.errors.values()) < 1e-5
    assert set(found.penalties.values()) == {1e-6}
    # Inputs that vary by hundredths, about a mean of 50, have their share in the map as well.
    np.testing.assert_allclose(found.weight[:, 2:], weight[:, 2:], atol=2e-2)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), chunk=st.integers(5, 200))
def test_chunks_do_not_matter(seed: int, chunk: int) -> None:
    x, y, _, _ = planted(seed, 200, noise=1.0)
    whole, parts = gathered(x, y, 200).moments(), gathered(x, y, chunk).moments()
    spread = np.sqrt(np.diag(whole.xx))
    np.testing.assert_allclose(parts.mean_x / spread, whole.mean_x / spread, atol=1e-3)
    np.testing.assert_allclose(
        parts.xx / np.outer(spread, spread), whole.xx / np.outer(spread, spread), atol=1e-4
    )
    np.testing.assert_allclose(parts.yy, whole.yy, rtol=1e-4)


def test_errors_are_those_of_the_rows() -> None:
    x, y, _, _ = planted(3, 500, noise=5.0)
    held_x, held_y, _, _ = planted(3, 500, noise=5.0)
    held_x, held_y = held_x[::-1] + 1, held_y[::-1]
    found = solve_ridge(gathered(x, y, 64), gathered(held_x, held_y, 64), GROUPS, grid=(1e-2,))
    wrong = held_y - (held_x @ found.weight.T + found.bias)
    for name, columns in GROUPS.items():
        part = held_y[:, columns]
        share = (wrong[:, columns] ** 2).sum() / ((part - part.mean(0)) ** 2).sum()
        assert found.errors[name] == pytest.approx(share, rel=1e-2)


def test_the_penalty_grows_where_rows_are_few_and_noisy() -> None:
    x, y, _, _ = planted(1, 30, inputs=6, noise=3000.0)
    more_x, more_y, _, _ = planted(2, 2000, inputs=6, noise=3000.0)
    found = solve_ridge(gathered(x, y, 30), gathered(more_x, more_y, 500), GROUPS)
    assert min(found.penalties.values()) > 1e-6
    least = solve_ridge(gathered(x, y, 30), gathered(more_x, more_y, 500), GROUPS, grid=(1e-6,))
    assert all(found.errors[name] <= least.errors[name] for name in GROUPS)


def test_rows_of_weight_zero_count_nothing() -> None:
    x, y, _, _ = planted(4, 300)
    spoilt = y.copy()
    spoilt[:50] = 1e4
    weights = np.ones(300)
    weights[:50] = 0
    found = solve_ridge(gathered(x, spoilt, 64, weights), gathered(x, y, 64), GROUPS)
    assert max(found.errors.values()) < 1e-5


def test_a_constant_input_has_no_say() -> None:
    x, y, _, _ = planted(5, 300)
    x[:, 2] = 7
    y = y - y.mean(0)
    found = solve_ridge(gathered(x, y, 64), gathered(x, y, 64), GROUPS)
    assert not found.weight[:, 2].any()
    assert np.isfinite(found.bias).all()


def test_no_rows_are_refused() -> None:
    empty = NormalEquations(2, 2)
    with pytest.raises(ValueError, match="no rows"):
        solve_ridge(empty, empty, {"key": slice(0, 2)})
