"""Rates: close where acceptance is steady, quick where it changes, the drafter's own at first."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraft.drafters.acceptance import AcceptanceTable, Promises


def test_nothing_known_is_what_the_drafter_says() -> None:
    table = AcceptanceTable([(0.2, 0.7)])
    assert table.rate(0, 0, 1) == pytest.approx(0.2)
    assert table.rate(0, 1, 5) == pytest.approx(0.7)


@pytest.mark.parametrize("truth", [0.05, 0.3, 0.6, 0.95])
def test_steady_acceptance_is_estimated_closely(truth: float) -> None:
    table, rng, found = AcceptanceTable([(0.5,)]), random.Random(1), []
    for _ in range(600):
        table.update(0, 0, 1, rng.random() < truth)
        found.append(table.rate(0, 0, 1))
    assert sum(found[300:]) / 300 == pytest.approx(truth, abs=0.05)
    assert sum(abs(rate - truth) for rate in found[300:]) / 300 < 0.08


def test_a_change_is_noticed() -> None:
    table = AcceptanceTable([(0.5,)])
    for _ in range(200):
        table.update(0, 0, 1, False)
    assert table.rate(0, 0, 1) < 0.05
    for _ in range(6):
        table.update(0, 0, 1, True)
    assert table.rate(0, 0, 1) > 0.5


def test_other_grades_are_believed_as_this_one_holds() -> None:
    table = AcceptanceTable([(0.5, 0.6)])
    for _ in range(20):
        table.update(0, 0, 1, False)
    assert table.rate(0, 1, 1) < 0.3
    assert table.rate(0, 1, 1) > table.rate(0, 0, 1)


def test_depths_are_told_apart() -> None:
    table, rng = AcceptanceTable([(0.5,)]), random.Random(2)
    for _ in range(300):
        table.update(0, 0, 1, rng.random() < 0.8)
        table.update(0, 0, 2, rng.random() < 0.2)
    assert table.rate(0, 0, 1) > 0.6
    assert table.rate(0, 0, 2) < 0.4


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.booleans()), max_size=60),
)
def test_a_rate_is_a_probability(priors: list[float], updates: list[tuple[int, int, bool]]) -> None:
    table = AcceptanceTable([priors])
    for grade, depth, accepted in updates:
        table.update(0, grade % len(priors), depth, accepted)
    rates = [table.rate(0, g, d) for g in range(len(priors)) for d in range(1, 5)]
    assert all(0 < rate < 1 for rate in rates)
    assert 0 < table.overall(0) < 1


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 3), st.booleans()), max_size=60))
def test_a_promise_is_a_probability(updates: list[tuple[float, int, bool]]) -> None:
    promises = Promises()
    for likely, proposers, accepted in updates:
        promises.update(likely, proposers, accepted)
    assert all(0 <= promises.kept(n / 20, k) <= 1 for n in range(21) for k in (1, 2))


def test_promises_are_corrected_by_what_became_of_them() -> None:
    promises, rng = Promises(), random.Random(3)
    for _ in range(400):
        promises.update(0.35, 1, rng.random() < 0.15)
        promises.update(0.35, 2, rng.random() < 0.6)
    assert promises.kept(0.35, 1) == pytest.approx(0.15, abs=0.1)
    assert promises.kept(0.35, 2) == pytest.approx(0.6, abs=0.15)
    assert promises.kept(0.75, 1) == 0.75
