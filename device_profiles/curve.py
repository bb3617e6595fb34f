"""The curve: what a step of the target costs by its rows, on one device with one bundle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from quickdraft.errors import InputError


@dataclass(frozen=True)
class Curve:
    """rows: ascending, from 1. seconds: of a step of so many rows; never falling.

    What was measured may fall where the machine was disturbed; `smoothed` makes a curve of it.
    """

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.rows or len(self.rows) != len(self.seconds) or self.rows[0] != 1:
            raise InputError("a curve needs a time for one row, and one time per number of rows")
        if any(a >= b for a, b in pairwise(self.rows)):
            raise InputError(f"the rows of a curve must rise; found {self.rows}")
        if not all(math.isfinite(s) and s > 0 for s in self.seconds):
            raise InputError(f"the times of a curve must be positive; found {self.seconds}")
        if any(a > b for a, b in pairwise(self.seconds)):
            raise InputError(f"the times of a curve must not fall; found {self.seconds}")

    @classmethod
    def smoothed(cls, times: Mapping[int, float]) -> Curve:
        """A curve of measured seconds by rows: more rows never cost less, so a time above a later
        one was a disturbance."""
        rows = tuple(sorted(times))
        seconds = [times[n] for n in rows]
        for i in range(len(seconds) - 2, -1, -1):
            seconds[i] = min(seconds[i], seconds[i + 1])
        return cls(rows, tuple(seconds))

    def at(self, rows: int) -> float:
        """Seconds of a step of `rows` rows: linear between measured points and beyond the last."""
        if len(self.rows) == 1:
            return self.seconds[0] * rows
        for i in range(1, len(self.rows)):
            if rows <= self.rows[i] or i == len(self.rows) - 1:
                low, high = self.rows[i - 1], self.rows[i]
                slope = (self.seconds[i] - self.seconds[i - 1]) / (high - low)
                return self.seconds[i - 1] + slope * (rows - low)
        raise AssertionError("unreachable")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"rows": list(self.rows), "seconds": list(self.seconds)}
