"""Worlds in which the truth is known: what each proposal is worth, and what a step costs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from quickdraft.device_profiles.curve import Curve
from quickdraft.drafters.acceptance import AcceptanceTable
from quickdraft.drafters.base import Draft, DrafterSource
from quickdraft.drafters.controller import MAX_NODES, Controller, Decision
from quickdraft.drafters.merge import Merged, merge
from quickdraft.drafters.tree import Tree

MEASURED = Curve((1, 2, 4, 8, 12, 16, 32), (0.0174, 0.0185, 0.021, 0.0263, 0.036, 0.0449, 0.0855))
"""A 1.5-billion-parameter model in 4 bits on two cores."""
CURVES = {
    "measured": MEASURED,
    "flat": Curve((1, 64), (0.010, 0.01005)),
    "linear": Curve((1, 33), (0.010, 0.0292)),
    "step": Curve((1, 8, 9, 16, 17, 32), (0.010, 0.0101, 0.018, 0.0181, 0.033, 0.0331)),
}


@dataclass(frozen=True)
class Kind:
    """A drafter: by grade, how often it is right and how often it says so. It offers `width` chains
    of `length` nodes with probability `offers`, for `cost` seconds and `per_node` more for each."""

    truth: tuple[float, ...]
    priors: tuple[float, ...]
    length: int = 8
    width: int = 1
    offers: float = 1.0
    cost: float = 30e-6
    per_node: float = 0.0


Policy = Callable[[Merged, Sequence[float]], Sequence[int]]
"""Nodes to verify of a tree, whose nodes are accepted with these probabilities."""


@dataclass(frozen=True)
class Step:
    """tokens: that were decided; expected: before chance had its say. seconds: all of the step."""

    tokens: int
    expected: float
    seconds: float
    nodes: int
    decision: Decision | None


class World:
    """A text, drafters and a target. A right token says how deep it is; wrong ones are all new."""

    def __init__(
        self,
        curve: Curve,
        kinds: Sequence[Kind],
        seed: int = 0,
        *,
        mood: Callable[[int], float] = lambda step: 1.0,
        policy: Policy | None = None,
        slowness: Callable[[int, random.Random], float] = lambda step, rng: 1.0,
        told: Curve | None = None,
    ) -> None:
        """mood: what the truth is multiplied by at a step. policy: instead of the controller.
        slowness: what the time of a step is multiplied by. told: a wrong curve, for the
        controller."""
        self.curve, self.kinds, self.mood, self.policy = curve, kinds, mood, policy
        self.slowness = slowness
        self.around = 0.0  # seconds of drafting besides asking, in every step
        self.rng, self.noise = random.Random(seed), random.Random(seed)
        self.names = [f"d{i}" for i in range(len(kinds))]
        sources = [
            DrafterSource(name, kind.priors, lambda: None, costly=kind.per_node > 0)
            for name, kind in zip(self.names, kinds, strict=True)
        ]
        self.controller = Controller(
            told or curve, sources, AcceptanceTable([kind.priors for kind in kinds])
        )
        self.steps = 0
        self.fresh = 10**6

    def step(self, room: int = MAX_NODES) -> Step:
        """One round of asking, choosing, verifying and learning."""
        mood, controller = self.mood(self.steps), self.controller
        asked = range(len(self.kinds)) if self.policy else controller.ask(room)
        drafts: list[Draft | None] = [None] * len(self.kinds)
        spent = {}
        for index in asked:
            kind = self.kinds[index]
            budget = room if self.policy else controller.budget(index, room)
            drafts[index] = draft = self._draft(kind, budget, mood)
            size = len(draft.tree) - 1 if draft else 0
            spent[self.names[index]] = kind.cost + kind.per_node * size
        merged = merge(0, drafts, controller.table.rate)
        truth = [1.0] * len(merged)
        for node in range(1, len(merged)):
            truth[node] = max(self.kinds[d].truth[g] * mood for d, g in merged.by[node])
        decision = None
        if self.policy:
            kept = self.policy(merged, truth)
        else:
            decision = controller.choose(merged, room, 0)
            kept = decision.nodes
        tokens = self._verify(merged, kept)
        verify_s = self.curve.at(len(kept) + 1) * self.slowness(self.steps, self.noise)
        if decision is not None:
            said = list(range(1, tokens + 1))
            controller.learn(merged, said, decision, verify_s, spent, self.around)
        self.steps += 1
        reach = reaching(merged, truth)
        expected = 1 + sum(reach[node] for node in kept)
        return Step(tokens, expected, verify_s + sum(spent.values()), len(kept), decision)

    def _draft(self, kind: Kind, budget: int, mood: float) -> Draft | None:
        rng = self.rng
        if rng.random() >= kind.offers or budget < 1:
            return None
        tokens, parents, grades = [0], [-1], [0]
        first, left = rng.randrange(len(kind.truth)), rng.random()
        for branch in range(kind.width):
            grade = (first + branch) % len(kind.truth)
            rate = kind.truth[grade] * mood
            right, parent = 0 <= left < rate, 0  # at most one branch is right
            left -= rate
            for depth in range(1, kind.length + 1):
                if len(tokens) > budget:
                    break
                if depth > 1:
                    right = rng.random() < rate and right
                self.fresh += 1
                tokens.append(depth if right else self.fresh)
                parents.append(parent)
                grades.append(grade)
                parent = len(tokens) - 1
        return Draft(Tree(np.array(tokens), np.array(parents)), grades)

    @staticmethod
    def _verify(merged: Merged, kept: Sequence[int]) -> int:
        """How many tokens are decided."""
        at, tokens = 0, 1
        for node in sorted(kept):
            if merged.parent[node] == at and merged.tokens[node] == tokens:
                at, tokens = node, tokens + 1
        return tokens


def reaching(merged: Merged, truth: Sequence[float]) -> list[float]:
    """The probability of each node to be accepted."""
    reach = [1.0] * len(merged)
    for node in range(1, len(merged)):
        reach[node] = reach[merged.parent[node]] * truth[node]
    return reach


def speed(world: World, steps: int = 200, warm: int = 50) -> float:
    """Expected tokens per plain step after the first `warm` steps."""
    taken = [world.step() for _ in range(steps)][warm:]
    seconds = sum(step.seconds for step in taken)
    return sum(step.expected for step in taken) / seconds * world.curve.at(1)


def best_speed(curve: Curve, kinds: Sequence[Kind], seeds: range) -> float:
    """What a planner reaches that knows the truth: of the likeliest nodes as many as are worth
    their time, at the rate that this planner itself reaches."""
    rate = 1.0

    def plan(merged: Merged, truth: Sequence[float]) -> list[int]:
        reach = reaching(merged, truth)
        order = sorted(range(1, len(merged)), key=reach.__getitem__, reverse=True)[:MAX_NODES]
        values, tokens = [1 - rate], 1.0
        for count, node in enumerate(order, 1):
            tokens += reach[node]
            values.append(tokens - rate * curve.at(count + 1) / curve.at(1))
        return order[: values.index(max(values))]

    for _ in range(4):
        rate = fmean(speed(World(curve, kinds, seed, policy=plan)) for seed in seeds)
    return rate
