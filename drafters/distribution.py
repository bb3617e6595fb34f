"""Tokens that may come next, and how likely each is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Values = NDArray[np.float64]

_CERTAINTY = np.ones(1)
_CERTAINTY.flags.writeable = False


@dataclass(frozen=True)
class Distribution:
    """Tokens that may come next: ids int64 [k], ascending, and their probabilities, float64 [k].

    A greedy choice is a distribution of one token.
    """

    ids: Ids
    probabilities: Values

    @classmethod
    def certain(cls, token: int) -> Distribution:
        """All probability on one token."""
        return cls(np.array([token], np.int64), _CERTAINTY)

    def probability(self, token: int) -> float:
        """The probability of a token; 0 where it cannot come."""
        at = int(np.searchsorted(self.ids, token))
        known = at < len(self.ids) and self.ids[at] == token
        return float(self.probabilities[at]) if known else 0.0

    def mode(self) -> int:
        """The most likely token; of equals the lowest id."""
        return int(self.ids[np.argmax(self.probabilities)])

    def draw(self, rng: np.random.Generator) -> int:
        """A random token, for one number of the generator."""
        cumulative = np.cumsum(self.probabilities)
        at = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
        return int(self.ids[min(int(at), len(self.ids) - 1)])
