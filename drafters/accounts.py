"""What asking each drafter costs and brings, and so whom to ask.

Everything is in plain steps, what a step without drafts costs, or in tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quickdraft.drafters.base import DrafterSource
from quickdraft.drafters.merge import Merged

COST_SHARE = 1 / 8
GAIN_SHARE = 1 / 16
MOST_JUMP = 4.0
"""A draft that took longer than so many usual ones was disturbed by something else."""
EXPLORING = 0.002
"""Part of the time that may go into asking a drafter which does not pay at the moment."""
TRIALS = 4
"""Steps for which a drafter is asked that turns out to have been right."""


class Account:
    """One drafter. cost: of asking it once; per_node: of one node of a costly drafter. gain: tokens
    it brings when asked, less what verifying its nodes costs. waited: steps since it was asked.
    trials: steps for which it is asked in any case."""

    def __init__(self, source: DrafterSource) -> None:
        mean = sum(source.grades) / max(len(source.grades), 1)
        self.costly = source.costly
        self.cost = self.per_node = 0.0
        # To begin with, what its own figures promise.
        self.gain = min(mean / max(1.0 - mean, 0.25), 3.0)
        self.waited = self.trials = 0

    def is_due(self, worth: float, may_spend: bool) -> bool:
        """Whether to ask it in this step: where it pays, where it was right lately, or where it was
        not asked for so long that looking again costs next to nothing."""
        self.waited += 1
        pays = may_spend and self.gain > worth * self.cost
        if not (pays or self.trials or self.waited * EXPLORING >= self.cost):
            return False
        self.waited = 0
        self.trials = max(self.trials - 1, 0)
        return True

    def settle(self, cost: float, nodes: int, gain: float) -> float:
        """Take in what asking it cost and brought; returns the cost that is to be reckoned with."""
        if self.cost:
            self.cost += COST_SHARE * (min(cost, MOST_JUMP * self.cost) - self.cost)
        else:
            self.cost = cost
        if nodes:
            per_node = cost / nodes
            if self.per_node:
                per_node = min(per_node, MOST_JUMP * self.per_node)
                self.per_node += COST_SHARE * (per_node - self.per_node)
            else:
                self.per_node = per_node
        self.gain += GAIN_SHARE * (gain - self.gain)
        return min(cost, MOST_JUMP * self.cost)


def settle(
    accounts: Sequence[Account],
    merged: Merged,
    kept: Sequence[int],
    path: Sequence[int],
    extra: float,
    costs: Mapping[int, float],
) -> float:
    """Settle the accounts of the drafters that were asked; returns what they cost together.

    kept: nodes that were verified; path: those that were right, verified or not. extra: what
    verifying cost. costs: by index of the drafter.
    """
    share = extra / max(len(kept), 1)
    gains = [0.0] * len(accounts)
    by = merged.by
    for node in kept:
        for drafter, _ in by[node]:
            gains[drafter] -= share
    verified = frozenset(kept)
    for node in path:
        for drafter, _ in by[node]:
            account = accounts[drafter]
            if node not in verified:
                # Nobody had thought so: it is worth a closer look.
                account.trials = 0 if account.costly else TRIALS
            elif len(by[node]) == 1 or not account.costly:
                # What others knew as well needs no costly drafter.
                gains[drafter] += 1.0
    spent = 0.0
    for drafter, cost in costs.items():
        account = accounts[drafter]
        nodes = 0
        if account.costly:
            nodes = sum(drafter == index for proposers in by for index, _ in proposers)
        spent += account.settle(cost, nodes, gains[drafter])
    return spent
