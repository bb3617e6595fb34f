"""What the next step costs: the calibrated curve, corrected by the steps that were taken."""

from __future__ import annotations

import math
from bisect import bisect_right

from quickdraft.device_profiles.curve import Curve

KNOTS = (1, 2, 4, 8, 16, 33)
"""Rows at which the shape of the curve is corrected; straight in between."""
LEVEL_SHARE = 1 / 16
"""How much of a step's error moves all costs: the machine is shared, its clock falls."""
SHAPE_SHARE = 1 / 48
"""How much of it moves the cost of just so many rows; the first ones of a number count for more,
so that a curve that was measured badly is put right."""
SHAPE_KEPT = 1 - 1 / 512
CLIP = 0.2
"""A step that took longer by more than this, relatively, was disturbed by something else. Nothing
makes a step shorter than it can be, so what is too short is a mistake of the curve."""
LEAST_SHAPE, MOST_SHAPE = -2.5, 0.4
CONTEXT_GRAIN = 64
REFRESHED_AFTER = 8


class StepCost:
    """Seconds of a step by its rows.

    The error of a step (log of measured over expected, limited) moves a level that all numbers of
    rows share and, more slowly, the shape of the curve around its own number of rows.
    """

    def __init__(self, curve: Curve, most_rows: int) -> None:
        rows = range(1, most_rows + 1)
        self._short = [curve.at(n) for n in rows]
        self._growth = [curve.at(n, 1) - curve.at(n) for n in rows]
        self._level = 0.0
        self._shape = [0.0] * len(KNOTS)
        self._seen = [0.0] * len(KNOTS)
        self._places = [_place(n) for n in rows]
        self._seconds: list[float] = []
        self._grain = -1
        self._age = 0

    def seconds(self, context: int) -> list[float]:
        """Seconds of a step over `context` tokens by rows: entry n - 1 for n rows, never falling.
        Not to be changed; it may be the same list as before."""
        grain = context // CONTEXT_GRAIN
        if grain != self._grain or self._age >= REFRESHED_AFTER:
            self._grain, self._age = grain, 0
            self._refresh(grain * CONTEXT_GRAIN)
        return self._seconds

    def _refresh(self, context: int) -> None:
        shape, found, least = self._shape, [], 0.0
        for short, growth, (knot, share) in zip(
            self._short, self._growth, self._places, strict=True
        ):
            bent = shape[knot] * (1 - share) + shape[knot + 1] * share
            least = max(least, (short + context * growth) * math.exp(self._level + bent))
            found.append(least)
        self._seconds = found

    def learn(self, rows: int, context: int, seconds: float) -> None:
        """Take in how long a step took."""
        if not (0 < seconds < math.inf and 1 <= rows <= len(self._short)):
            return
        error = self._error(rows, context, seconds)
        self._level += LEVEL_SHARE * min(max(error, -CLIP), CLIP)
        knot, share = self._places[rows - 1]
        for at, weight in ((knot, 1 - share), (knot + 1, share)):
            self._seen[at] += weight
            part = max(SHAPE_SHARE, 1.0 / (2.0 + self._seen[at]))
            self._bend(at, part * weight * min(error, CLIP))
        for at in range(1, knot + 1):
            # Fewer rows take no longer than these did.
            if self.seconds(context)[KNOTS[at] - 1] > seconds:
                self._bend(at, min(self._error(KNOTS[at], context, seconds), 0.0))
        self._age += 1

    def _error(self, rows: int, context: int, seconds: float) -> float:
        """Log of a measured time over the expected one."""
        knot, share = self._places[rows - 1]
        bent = self._shape[knot] * (1 - share) + self._shape[knot + 1] * share
        expected = self._short[rows - 1] + context * self._growth[rows - 1]
        return math.log(seconds / expected) - self._level - bent

    def _bend(self, knot: int, by: float) -> None:
        moved = self._shape[knot] * SHAPE_KEPT + by
        self._shape[knot] = min(max(moved, LEAST_SHAPE), MOST_SHAPE)


def _place(rows: int) -> tuple[int, float]:
    """The knot below a number of rows, and how far it is on the way to the next one."""
    knot = min(bisect_right(KNOTS, rows), len(KNOTS) - 1) - 1
    return knot, min((rows - KNOTS[knot]) / (KNOTS[knot + 1] - KNOTS[knot]), 1.0)
