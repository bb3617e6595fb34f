"""How often proposals are accepted, by drafter, grade and depth."""

from __future__ import annotations

from collections.abc import Sequence

PRIOR_WEIGHT = 4.0
"""How many observations the grade a drafter gives itself counts for."""
DEPTH_WEIGHT = 6.0
"""How many observations the rate of a grade counts for when its depths are told apart."""
MEMORY = 48.0
"""Observations after which an old one counts for 1/e."""

_KEEP = 1.0 - 1.0 / MEMORY


class AcceptanceTable:
    """Decayed rates, shared by the conversations of a model.

    A rate backs off from (drafter, grade, depth) to (drafter, grade) and from there to what the
    drafter said of the grade. Conversations in several threads may use one table: an update that
    another thread overtakes is lost, and nothing else happens.
    """

    def __init__(self, priors: Sequence[Sequence[float]]) -> None:
        """priors: per drafter, per grade, the probability to start from."""
        self._priors = [[min(max(p, 0.01), 0.99) for p in grades] for grades in priors]
        # Hits and observations, both decayed.
        self._by_grade = [[[0.0, 0.0] for _ in grades] for grades in priors]
        self._by_depth: dict[tuple[int, int, int], list[float]] = {}

    def rate(self, drafter: int, grade: int, depth: int) -> float:
        """Estimated probability that such a node is accepted, given that its parent is."""
        hits, seen = self._by_grade[drafter][grade]
        rate = (hits + PRIOR_WEIGHT * self._priors[drafter][grade]) / (seen + PRIOR_WEIGHT)
        cell = self._by_depth.get((drafter, grade, depth))
        if cell is None:
            return rate
        return (cell[0] + DEPTH_WEIGHT * rate) / (cell[1] + DEPTH_WEIGHT)

    def update(self, drafter: int, grade: int, depth: int, accepted: bool) -> None:
        """Count one node whose parent was accepted."""
        for cell in (
            self._by_grade[drafter][grade],
            self._by_depth.setdefault((drafter, grade, depth), [0.0, 0.0]),
        ):
            cell[0] = cell[0] * _KEEP + accepted
            cell[1] = cell[1] * _KEEP + 1.0
