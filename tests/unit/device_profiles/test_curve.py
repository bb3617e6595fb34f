"""The curve: lines between what was measured, never falling."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraft.device_profiles.curve import Curve
from quickdraft.errors import InputError

times = st.dictionaries(st.integers(2, 40), st.floats(1e-4, 1), max_size=12)


def test_straight_between_points_and_beyond_them() -> None:
    curve = Curve((1, 2, 4), (1.0, 2.0, 3.0), (0.0, 0.0, 0.5))
    assert [curve.at(n) for n in (1, 2, 3, 4, 6)] == [1.0, 2.0, 2.5, 3.0, 4.0]
    assert [curve.at(n, 10) for n in (1, 2, 3, 4, 6)] == [1.0, 2.0, 5.0, 8.0, 14.0]


def test_a_single_point_grows_in_proportion() -> None:
    assert Curve((1,), (0.5,)).at(4) == 2.0


@given(times, times, st.floats(1e-4, 1), st.floats(-1, 1), st.integers(0, 5000))
def test_smoothed_times_never_fall(
    near: dict[int, float],
    growth: dict[int, float],
    single: float,
    single_growth: float,
    context: int,
) -> None:
    curve = Curve.smoothed({1: single, **near}, {1: single_growth, **growth})
    seconds = [curve.at(n, context) for n in range(1, 60)]
    assert all(b >= a * (1 - 1e-12) for a, b in pairwise(seconds))
    assert seconds[0] > 0
    for n, measured in {1: single, **near}.items():
        assert curve.at(n) <= measured * (1 + 1e-12)
    # The lowest of what was measured is believed.
    lowest = min({1: single, **near}.values())
    assert curve.at(1) == pytest.approx(lowest)


def test_a_line_between_equal_values_does_not_fall_by_a_rounding() -> None:
    growth = {1: 0.14695773981488122, 2: 1.0, 3: 0.4198734365986346}
    assert len(set(Curve.smoothed({1: 1.0, 2: 1.0, 3: 1.0}, growth).growth[1:])) == 1


def test_a_disturbed_time_takes_the_later_one() -> None:
    assert Curve.smoothed({1: 1.0, 2: 9.0, 4: 2.0}).seconds == (1.0, 2.0, 2.0)


def test_rows_cost_no_more_together_than_one_by_one() -> None:
    assert Curve.smoothed({1: 1.0, 2: 9.0, 4: 9.0}).seconds == (1.0, 2.0, 4.0)


def test_growth_is_measured_at_fewer_rows() -> None:
    curve = Curve.smoothed({1: 1.0, 3: 1.0, 5: 1.0, 9: 1.0}, {1: 0.1, 5: 0.3})
    assert curve.growth == pytest.approx((0.1, 0.2, 0.3, 0.5))


@pytest.mark.parametrize(
    ("rows", "seconds", "growth", "said"),
    [
        ((), (), (), "one row"),
        ((2, 3), (1.0, 1.0), (), "one row"),
        ((1, 3), (1.0,), (), "one time per"),
        ((1, 3), (1.0, 2.0), (0.1,), "one time per"),
        ((1, 3, 3), (1.0, 2.0, 2.0), (), "rise"),
        ((1, 3), (0.0, 2.0), (), "positive"),
        ((1, 3), (1.0, float("nan")), (), "positive"),
        ((1, 3), (1.0, float("inf")), (), "positive"),
        ((1, 3), (2.0, 1.0), (), "fall"),
        ((1, 3), (1.0, 2.0), (-0.1, 0.1), "negative"),
        ((1, 3), (1.0, 2.0), (0.1, 0.0), "fall"),
    ],
)
def test_what_is_no_curve_is_refused(
    rows: tuple[int, ...], seconds: tuple[float, ...], growth: tuple[float, ...], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        Curve(rows, seconds, growth)


def test_as_json() -> None:
    assert Curve((1, 2), (1.0, 2.0)).to_dict() == {
        "rows": [1, 2],
        "seconds": [1.0, 2.0],
        "growth": [0.0, 0.0],
    }
