"""The curve: what a step of the target costs by its rows, on one device with one bundle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from quickdraft.errors import InputError


@dataclass(frozen=True)
class Curve:
    """rows: ascending, from 1. seconds: of a step of so many rows over an empty context; never
    falling. growth: seconds that a token of context adds to such a step; never falling either
    (empty: none).

    What was measured may fall where the machine was disturbed; `smoothed` makes a curve of it.
    """

    rows: tuple[int, ...]
    seconds: tuple[float, ...]
    growth: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.growth:
            object.__setattr__(self, "growth", (0.0,) * len(self.rows))
        if (
            not self.rows
            or self.rows[0] != 1
            or not (len(self.rows) == len(self.seconds) == len(self.growth))
        ):
            raise InputError("a curve needs a time for one row, and one time per number of rows")
        if any(a >= b for a, b in pairwise(self.rows)):
            raise InputError(f"the rows of a curve must rise; found {self.rows}")
        if not all(math.isfinite(s) and s > 0 for s in self.seconds):
            raise InputError(f"the times of a curve must be positive; found {self.seconds}")
        if not all(math.isfinite(s) and s >= 0 for s in self.growth):
            raise InputError(f"what context adds must not be negative; found {self.growth}")
        for values in (self.seconds, self.growth):
            if any(a > b for a, b in pairwise(values)):
                raise InputError(f"the times of a curve must not fall; found {values}")

    @classmethod
    def smoothed(
        cls, times: Mapping[int, float], growth: Mapping[int, float] | None = None
    ) -> Curve:
        """A curve of measured seconds by rows: more rows never cost less, so a time above a later
        one was a disturbance, and so was one above that of as many single rows. growth: seconds per
        token of context, for some of the rows."""
        rows = tuple(sorted(times))
        most = times[rows[0]] / rows[0]
        seconds = tuple(_never_falling([min(times[n], n * most) for n in rows]))
        if not growth:
            return cls(rows, seconds)
        known = tuple(sorted(growth))
        risen = _never_falling([max(growth[n], 0.0) for n in known])
        # Once more: between equal values a line may fall by a rounding.
        return cls(rows, seconds, tuple(_never_falling([_line(known, risen, n) for n in rows])))

    def at(self, rows: int, context: int = 0) -> float:
        """Seconds of a step of `rows` rows over `context` tokens: linear between measured points
        and beyond the last."""
        short = _line(self.rows, self.seconds, rows)
        return short + context * _line(self.rows, self.growth, rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "rows": list(self.rows),
            "seconds": list(self.seconds),
            "growth": list(self.growth),
        }


def _never_falling(values: list[float]) -> list[float]:
    """Each value lowered to the least that comes after it."""
    for i in range(len(values) - 2, -1, -1):
        values[i] = min(values[i], values[i + 1])
    return values


def _line(rows: Sequence[int], values: Sequence[float], at: int) -> float:
    """The value at a number of rows: straight between two points, and on from the last two; from
    a single one in proportion."""
    if len(rows) == 1:
        return values[0] * at
    i = 1
    while i < len(rows) - 1 and at > rows[i]:
        i += 1
    slope = (values[i] - values[i - 1]) / (rows[i] - rows[i - 1])
    return values[i - 1] + slope * (at - rows[i - 1])
