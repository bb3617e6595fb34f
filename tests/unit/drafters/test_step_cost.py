"""The corrected curve: follows what is measured, and is not thrown by single steps."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from quickdraft.device_profiles.curve import Curve
from quickdraft.drafters.step_cost import StepCost

CURVE = Curve((1, 2, 4, 8, 16, 32), (0.010, 0.0105, 0.011, 0.014, 0.022, 0.04), (1e-6,) * 6)


def test_nothing_measured_is_the_curve() -> None:
    seconds = StepCost(CURVE, 33).seconds(640)
    assert seconds == pytest.approx([CURVE.at(n, 640) for n in range(1, 34)])


def test_a_slower_machine_raises_all_costs() -> None:
    cost, rng = StepCost(CURVE, 33), random.Random(1)
    for _ in range(300):
        rows = rng.choice([1, 3, 5, 9])
        cost.learn(rows, 0, 1.5 * CURVE.at(rows) * rng.lognormvariate(0, 0.05))
    found = cost.seconds(0)
    for rows in (1, 2, 4, 8, 12):
        assert found[rows - 1] == pytest.approx(1.5 * CURVE.at(rows), rel=0.06)


def test_a_wrong_shape_is_corrected() -> None:
    cost, rng = StepCost(CURVE, 33), random.Random(2)
    for _ in range(600):
        rows = rng.choice([1, 2, 8])
        cost.learn(rows, 0, CURVE.at(rows) * (1.3 if rows == 8 else 1.0))
    found = cost.seconds(0)
    assert found[7] / found[0] == pytest.approx(1.3 * 1.4, rel=0.08)


def test_disturbed_steps_hardly_count() -> None:
    cost, rng = StepCost(CURVE, 33), random.Random(3)
    for _ in range(300):
        cost.learn(4, 0, CURVE.at(4) * (20 if rng.random() < 0.05 else 1))
    assert cost.seconds(0)[3] == pytest.approx(CURVE.at(4), rel=0.1)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_times_are_left_out(seconds: float) -> None:
    cost = StepCost(CURVE, 33)
    for _ in range(20):
        cost.learn(4, 0, seconds)
    assert cost.seconds(0) == StepCost(CURVE, 33).seconds(0)


def test_costs_never_fall_with_rows() -> None:
    cost, rng = StepCost(CURVE, 33), random.Random(4)
    for _ in range(500):
        rows = rng.randrange(1, 34)
        cost.learn(rows, rng.randrange(4000), rng.uniform(0.001, 0.1))
        found = cost.seconds(rng.randrange(4000))
        assert all(a <= b for a, b in pairwise(found))
        assert len(found) == 33


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_wrong_curve_is_put_right_by_its_first_steps(factor: float) -> None:
    cost = StepCost(CURVE, 33)
    for rows in (1, 1, 4, 4, 4):
        cost.learn(rows, 0, factor * CURVE.at(rows))
    for rows in (1, 2, 4):
        assert cost.seconds(0)[rows - 1] == pytest.approx(factor * CURVE.at(rows), rel=0.1)


def test_one_disturbed_first_step_is_not_believed() -> None:
    cost = StepCost(CURVE, 33)
    for factor in (1.0, 5.0, 1.0):
        cost.learn(1, 0, factor * CURVE.at(1))
    assert cost.seconds(0)[0] == pytest.approx(CURVE.at(1), rel=0.05)
