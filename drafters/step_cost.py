"""What the next step costs: the calibrated curve, corrected by the steps that were taken."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right

from quickdraft.device_profiles.curve import Curve

KNOTS = (1, 2, 4, 8, 16, 33)
"""Rows at which the shape of the curve is corrected; straight in between."""
LEVEL_SHARE = 1 / 16
"""How much of a step's error moves all costs: the machine is shared, its clock falls."""
SHAPE_SHARE = 1 / 48
"""How much of it moves the cost of just so many rows."""
SHAPE_KEPT = 1 - 1 / 512
FIRST_STEPS = 5
"""So many first errors of a number of rows count by their median, together with one vote for the
curve: two steps that agree put a wrong curve right, and a single disturbed one does little."""
CLIP = 0.2
"""Later, a step that took longer by more than this, relatively, was disturbed by something else.
Nothing makes a step shorter than it can be, so what is too short is a mistake of the curve."""
CHANCE = 0.1
LEAST_SHAPE, MOST_SHAPE = -2.5, 1.5
CONTEXT_GRAIN = 64
REFRESHED_AFTER = 8


class StepCost:
    """Seconds of a step by its rows.

    The error of a step (log of measured over expected, limited) moves a level that all numbers of
    rows share and the shape of the curve around its own number of rows. What was never measured is
    off by as much as the next smaller number of rows that was. widest: rows of the widest
    step measured; plain_steps: measured ones of one row.
    """

    def __init__(self, curve: Curve, most_rows: int) -> None:
        rows = range(1, most_rows + 1)
        self._short = [curve.at(n) for n in rows]
        self._growth = [curve.at(n, 1) - short for n, short in zip(rows, self._short, strict=True)]
        self._level = 0.0
        self._shape = [0.0] * len(KNOTS)
        self._seen = [0.0] * len(KNOTS)
        self._first: list[list[float]] = [[] for _ in KNOTS]
        self._places = [_place(n) for n in rows]
        self._seconds: list[float] = []
        self._grain = -1
        self._age = 0
        self.widest = 1
        self.plain_steps = 0

    def seconds(self, context: int) -> list[float]:
        """Seconds of a step over `context` tokens by rows: entry n - 1 for n rows, never falling.
        Not to be changed; it may be the same list as before."""
        grain = context // CONTEXT_GRAIN
        if grain != self._grain or self._age >= REFRESHED_AFTER:
            self._grain, self._age = grain, 0
            self._refresh(grain * CONTEXT_GRAIN)
        return self._seconds

    def _refresh(self, context: int) -> None:
        bends = [self._bent(knot) for knot in range(len(KNOTS))]
        found, least = [], 0.0
        for short, growth, (knot, share) in zip(
            self._short, self._growth, self._places, strict=True
        ):
            bent = bends[knot] * (1 - share) + bends[knot + 1] * share
            least = max(least, (short + context * growth) * math.exp(self._level + bent))
            found.append(least)
        self._seconds = found

    def learn(self, rows: int, context: int, seconds: float) -> None:
        """Take in how long a step took."""
        if not (0 < seconds < math.inf and 1 <= rows <= len(self._short)):
            return
        self.widest = max(self.widest, rows)
        self.plain_steps += rows == 1
        error = self._error(rows, context, seconds)
        knot, share = self._places[rows - 1]
        for at, weight in ((knot, 1 - share), (knot + 1, share)):
            if weight:
                self._seen[at] += weight
                self._learn_shape(at, weight, error)
        self._level += LEVEL_SHARE * min(max(error, -CLIP), CLIP)
        for at in range(1, knot + 1):
            # Fewer rows take no longer than these did. What is near may be chance: the luckiest of
            # many steps is not what the next one costs.
            off = self._error(KNOTS[at], context, seconds)
            if off < -CHANCE:
                self._bend(at, off)
        self._age += 1

    def _learn_shape(self, knot: int, weight: float, error: float) -> None:
        first = self._first[knot]
        if len(first) > FIRST_STEPS:
            part = max(SHAPE_SHARE, 1.0 / (2.0 + self._seen[knot]))
            self._bend(knot, part * weight * min(error, CLIP))
            return
        bent = self._bent(knot)
        if not first:
            first.append(bent)
        first.append(bent + error)
        self._shape[knot] = min(max(statistics.median(first), LEAST_SHAPE), MOST_SHAPE)
        self._age = REFRESHED_AFTER

    def _error(self, rows: int, context: int, seconds: float) -> float:
        """Log of a measured time over the expected one."""
        knot, share = self._places[rows - 1]
        bent = self._bent(knot) * (1 - share) + self._bent(knot + 1) * share
        expected = self._short[rows - 1] + context * self._growth[rows - 1]
        return math.log(seconds / expected) - self._level - bent

    def _bent(self, knot: int) -> float:
        """What the cost of a knot is off by, besides the level."""
        shape = self._shape[knot]
        return shape if knot == 0 or self._first[knot] else shape + self._bent(knot - 1)

    def _bend(self, knot: int, by: float) -> None:
        moved = self._shape[knot] * SHAPE_KEPT + by
        self._shape[knot] = min(max(moved, LEAST_SHAPE), MOST_SHAPE)


def _place(rows: int) -> tuple[int, float]:
    """The knot below a number of rows, and how far it is on the way to the next one."""
    knot = min(bisect_right(KNOTS, rows), len(KNOTS) - 1) - 1
    return knot, min((rows - KNOTS[knot]) / (KNOTS[knot + 1] - KNOTS[knot]), 1.0)
