"""What a training run shows of itself over time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

MOST_POINTS = 1000


@dataclass(frozen=True)
class Point:
    """Figures at one moment. step: steps done; seconds: of training, over all of its runs."""

    step: int
    seconds: float
    figures: Mapping[str, float]


@dataclass
class History:
    """Points in order. training: means since the point before, over `every` steps; its length is
    bounded by joining neighbours. held_out: what `evaluate` said."""

    training: list[Point] = field(default_factory=list)
    held_out: list[Point] = field(default_factory=list)
    every: int = 10

    def add(self, point: Point) -> None:
        """Add means of training."""
        self.training.append(point)
        if len(self.training) >= MOST_POINTS:
            pairs = zip(self.training[::2], self.training[1::2], strict=True)
            self.training = [_joined(first, second) for first, second in pairs]
            self.every *= 2

    @property
    def last(self) -> Mapping[str, float]:
        """The newest figures of training."""
        return self.training[-1].figures if self.training else {}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> History:
        """What `to_dict` gave."""
        training = [Point(**point) for point in value["training"]]
        return cls(training, [Point(**point) for point in value["held_out"]], value["every"])


def _joined(first: Point, second: Point) -> Point:
    both = {name: (first.figures[name] + value) / 2 for name, value in second.figures.items()}
    return Point(second.step, second.seconds, both)
