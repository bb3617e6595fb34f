"""Draft trees drawn at random without replacement, for answers that sample.

Jeon et al., "Recursive Speculative Decoding" (arXiv 2402.14160). Siblings that differ are worth
more than independent draws, which repeat each other, and the rule of recursive rejection keeps the
target's distribution. Two shapes: a constant branching per level (RSD-C), and beams (RSD-S), drawn
by Stochastic Beam Search (Kool et al., arXiv 1903.06059), which spend the nodes where the drafter
expects the answer to go. Pure functions of laws and random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.base import Drawn
from quickdraft.drafters.distribution import Distribution
from quickdraft.drafters.tree import Tree

Values = NDArray[np.float64]


@dataclass
class DrawnTree:
    """A tree in the making. ranks: the place of each node among its siblings, first drawn 0."""

    tokens: list[int]
    parent: list[int] = field(default_factory=lambda: [-1])
    ranks: list[int] = field(default_factory=lambda: [0])
    laws: dict[int, Drawn] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def tree(self) -> Tree:
        """The tree as it is now."""
        return Tree(np.array(self.tokens, np.int64), np.array(self.parent, np.int64))

    def add(self, parent: int, law: Distribution, token: int) -> int:
        """Add the next token drawn after `parent` and return its node."""
        rank = self.laws[parent].count if parent in self.laws else 0
        self.laws[parent] = Drawn(law, rank + 1)
        self.tokens.append(token)
        self.parent.append(parent)
        self.ranks.append(rank)
        return len(self.tokens) - 1


LawsAfter = Callable[[DrawnTree, Sequence[int]], Sequence[Distribution | None]]
"""The drafter's laws after nodes of one level of a tree; None where it goes no further. What it
decides may depend on all that is drawn already."""


def constant_branching(
    root: int, laws_after: LawsAfter, branching: Sequence[int], rng: np.random.Generator
) -> DrawnTree:
    """Draw branching[d] children of every node of depth d (RSD-C), fewer where a law has fewer."""
    drawn, level = DrawnTree([root]), [0]
    for width in branching:
        below = []
        for node, law in zip(level, laws_after(drawn, level), strict=True):
            if law is not None:
                ids, _ = _perturbed(law, 0.0, rng)
                below += [drawn.add(node, law, int(token)) for token in ids[:width]]
        if not below:
            break
        level = below
    return drawn


def stochastic_beams(
    root: int, laws_after: LawsAfter, width: int, depth: int, rng: np.random.Generator
) -> DrawnTree:
    """Draw `width` beams of up to `depth` tokens without replacement (RSD-S).

    Every node that was a beam once stays: leaving out those without a continuation would make what
    is drawn depend on what was drawn after it.
    """
    drawn = DrawnTree([root])
    beams = [(0, 0.0, 0.0)]  # node, log-probability, perturbed log-probability
    for _ in range(depth):
        found: list[tuple[float, float, int, Distribution, int]] = []
        laws = laws_after(drawn, [node for node, _, _ in beams])
        for (node, log_p, perturbed), law in zip(beams, laws, strict=True):
            if law is not None:
                ids, values = _perturbed(law, log_p, rng)
                keys = _conditioned(values[:width], perturbed)
                for token, key in zip(ids[:width].tolist(), keys.tolist(), strict=True):
                    after = log_p + float(np.log(law.probability(token)))
                    found.append((key, after, node, law, token))
        if not found:
            break
        found.sort(key=lambda beam: -beam[0])  # stable: siblings stay in the order drawn
        beams = [
            (drawn.add(node, law, token), after, key)
            for key, after, node, law, token in found[:width]
        ]
    return drawn


def _perturbed(
    law: Distribution, log_p: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], Values]:
    """Tokens and their Gumbel-perturbed log-probabilities after a path of log-probability `log_p`,
    largest first: the first k are k draws without replacement (Gumbel-top-k)."""
    possible = law.probabilities > 0
    ids = law.ids[possible]
    values = np.log(law.probabilities[possible]) + rng.gumbel(log_p, 1.0, len(ids))
    order = np.argsort(-values, kind="stable")
    return ids[order], values[order]


def _conditioned(values: Values, largest: float) -> Values:
    """Perturbed values, largest first, given that the largest of them is `largest`; rising with
    the values (Kool et al., appendix B.3, the form that does not overflow)."""
    with np.errstate(divide="ignore"):
        v = largest - values + np.log1p(-np.exp(values - values[0]))
    conditioned: Values = largest - np.maximum(v, 0.0) - np.log1p(np.exp(-np.abs(v)))
    return conditioned
