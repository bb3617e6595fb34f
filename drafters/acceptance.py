"""How often proposals are accepted, by drafter, grade and depth."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log

PRIOR_WEIGHT = 3.0
"""How many observations the grade a drafter gives itself counts for."""
TRUST_WEIGHT = 3.0
"""How many accepted nodes a drafter's own figures count for as a whole."""
DEPTH_WEIGHT = 6.0
"""How many accepted nodes the rate of a grade counts for when its depths are told apart."""
PROMISE_WEIGHT = 4.0
"""How many accepted nodes the promises of a merged tree count for."""
STEPS = 10
"""Steps of probability that promises are told apart by."""
MEMORY = 128.0
"""Observations after which an old one counts for 1/e in the slow rate of a grade."""
FAST_SHARE = 1 / 6
"""What a new observation counts for in the fast rate."""
BELIEF_KEPT = 0.9
"""What is left of the evidence for one of the two rates when the next observation comes."""
FAVOUR = 2.5
"""Log odds of the slow rate where nothing speaks for either."""
LEAST = 0.02
"""No event is less likely than this: one surprise must not decide."""

_KEEP = 1.0 - 1.0 / MEMORY


class _Cell:
    """One grade of one drafter.

    accepted, seen: decayed counts, of which the slow rate is made. fast: the fast rate. evidence:
    log odds of the fast rate over the slow one, by how well each foresaw what came. rate: the
    mixture of both.
    """

    __slots__ = ("accepted", "evidence", "fast", "prior", "rate", "seen")

    def __init__(self, prior: float) -> None:
        self.prior = self.fast = self.rate = min(max(prior, LEAST), 1.0 - LEAST)
        self.accepted = self.seen = self.evidence = 0.0

    def update(self, prior: float, accepted: bool) -> None:
        """Count an observation; `prior` counts for the first ones."""
        slow = (self.accepted + PRIOR_WEIGHT * prior) / (self.seen + PRIOR_WEIGHT)
        if accepted:
            ratio = max(self.fast, LEAST) / max(slow, LEAST)
        else:
            ratio = max(1.0 - self.fast, LEAST) / max(1.0 - slow, LEAST)
        self.evidence = self.evidence * BELIEF_KEPT + log(ratio)
        self.fast += FAST_SHARE * (accepted - self.fast)
        self.accepted = self.accepted * _KEEP + accepted
        self.seen = self.seen * _KEEP + 1.0
        slow = (self.accepted + PRIOR_WEIGHT * prior) / (self.seen + PRIOR_WEIGHT)
        self.rate = slow + (self.fast - slow) / (1.0 + exp(FAVOUR - self.evidence))


class _Held:
    """How far figures have held: nodes accepted, and as many as they had promised, both decayed.
    factor: what to multiply odds by."""

    __slots__ = ("accepted", "factor", "promised", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.accepted = self.promised = 0.0
        self.factor = 1.0

    def update(self, promised: float, accepted: bool) -> None:
        """Count an observation."""
        self.accepted = self.accepted * _KEEP + accepted
        self.promised = self.promised * _KEEP + promised
        self.factor = (self.accepted + self.weight) / (self.promised + self.weight)


class AcceptanceTable:
    """Decayed rates, shared by the conversations of a model.

    The rate of a grade is a mixture of a slow and a fast average, weighed by how well each foresaw
    the last observations: steady acceptance is estimated closely, and a text that suddenly repeats
    itself is noticed at once. It starts from what the drafter says of the grade, corrected by how
    its figures have held in other grades. The rate of a grade at a depth is that of the grade,
    corrected by how that has held there.

    Conversations in several threads may use one table: an update that another thread overtakes is
    lost, and nothing else happens.
    """

    def __init__(self, priors: Sequence[Sequence[float]]) -> None:
        """priors: per drafter, per grade, the probability to start from."""
        self._cells = [[_Cell(prior) for prior in grades] for grades in priors]
        self._trust = [_Held(TRUST_WEIGHT) for _ in priors]
        self._depths: dict[tuple[int, int, int], _Held] = {}

    def rate(self, drafter: int, grade: int, depth: int) -> float:
        """Estimated probability that such a node is accepted, given that its parent is."""
        cell = self._cells[drafter][grade]
        rate = cell.rate if cell.seen else _scaled(cell.prior, self._trust[drafter].factor)
        held = self._depths.get((drafter, grade, depth))
        return rate if held is None else _scaled(rate, held.factor)

    def overall(self, drafter: int) -> float:
        """The rate of a drafter's nodes, whatever their grade."""
        cells = self._cells[drafter]
        weights = [cell.seen + 0.1 for cell in cells]
        rates = [cell.rate * weight for cell, weight in zip(cells, weights, strict=True)]
        return sum(rates) / sum(weights)

    def update(self, drafter: int, grade: int, depth: int, accepted: bool) -> None:
        """Count one node whose parent was accepted."""
        cell, trust = self._cells[drafter][grade], self._trust[drafter]
        key = (drafter, grade, depth)
        held = self._depths.get(key)
        if held is None:
            held = self._depths[key] = _Held(DEPTH_WEIGHT)
        held.update(cell.rate, accepted)
        cell.update(_scaled(cell.prior, trust.factor), accepted)
        trust.update(cell.prior, accepted)


class Promises:
    """How far the probabilities hold that a merged tree promises.

    The surest of several drafters is surer than it should be, because it was chosen for that, and
    drafters that agree without having copied from each other are right more often than each of them
    alone. So nodes are counted by what they promise and by whether several proposed them.
    """

    def __init__(self) -> None:
        self._held = [[_Held(PROMISE_WEIGHT) for _ in range(STEPS + 1)] for _ in range(2)]

    def kept(self, likely: float, proposers: int) -> float:
        """The probability that such a promise is kept."""
        return _scaled(likely, self._held[proposers > 1][int(likely * STEPS)].factor)

    def update(self, likely: float, proposers: int, accepted: bool) -> None:
        """Count one node whose parent was accepted."""
        self._held[proposers > 1][int(likely * STEPS)].update(likely, accepted)


def _scaled(probability: float, factor: float) -> float:
    """Multiplied as odds, so that it stays a probability."""
    odds = factor * probability
    return odds / (1.0 - probability + odds)
