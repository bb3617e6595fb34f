"""Every rule that calls itself lossless decides tokens with the target's law, however the tree came
about (S2, S3, S4); and what breaks that is found by the same tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quickdraft.drafters.base import Drawn
from quickdraft.drafters.distribution import Distribution
from quickdraft.drafters.rsd import DrawnTree, LawsAfter, constant_branching, stochastic_beams
from quickdraft.drafters.tree import Tree
from quickdraft.runtime.accept import sampled

VOCABULARY = 4
Tokens = tuple[int, ...]
LawOf = Callable[[Tokens], Distribution]
Laws = dict[int, Drawn]
Build = Callable[[Tokens, np.random.Generator], tuple[Tree, Laws]]
"""Drafts after the tokens of an answer; the root stands for the last of them."""


def from_dense(p: NDArray[np.float64]) -> Distribution:
    kept = np.flatnonzero(p > 0)
    return Distribution(kept, p[kept] / p.sum())


def random_laws(seed: int, concentration: float, cut: float = 0.0) -> LawOf:
    """A law after every beginning; `cut` drops rare tokens, as top-p would."""

    @lru_cache(None)
    def law(tokens: Tokens) -> Distribution:
        rng = np.random.default_rng([seed, *tokens])
        p = rng.dirichlet([concentration] * VOCABULARY)
        return from_dense(np.where(p >= min(cut, p.max()), p + 0.02, 0.0))

    return law


TARGET = random_laws(1, 1.0, cut=0.05)
DRAFTER = random_laws(2, 0.8, cut=0.1)


def after(of: LawOf, answer: Tokens, tree: Tree, node: int) -> Distribution:
    path = []
    while node:
        path.append(int(tree.tokens[node]))
        node = int(tree.parent[node])
    return of((*answer, *reversed(path)))


def drafter_laws(answer: Tokens, stop: Callable[[Distribution], bool] | None = None) -> LawsAfter:
    def laws_after(drawn: DrawnTree, nodes: Sequence[int]) -> list[Distribution | None]:
        found = [after(DRAFTER, answer, drawn.tree, node) for node in nodes]
        return [None if stop and stop(law) else law for law in found]

    return laws_after


def branching(*widths: int) -> Build:
    def build(answer: Tokens, rng: np.random.Generator) -> tuple[Tree, Laws]:
        drawn = constant_branching(0, drafter_laws(answer), widths, rng)
        return drawn.tree, drawn.laws

    return build


def beams(width: int, depth: int) -> Build:
    def build(answer: Tokens, rng: np.random.Generator) -> tuple[Tree, Laws]:
        drawn = stochastic_beams(0, drafter_laws(answer), width, depth, rng)
        return drawn.tree, drawn.laws

    return build


def cut(tree: Tree, laws: Laws, keep: Sequence[bool]) -> tuple[Tree, Laws]:
    """Without the nodes that are not kept, and what hangs below them."""
    new = {0: 0}
    for node in range(1, len(tree)):
        if keep[node] and int(tree.parent[node]) in new:
            new[node] = len(new)
    kept = list(new)
    parents = [-1, *(new[int(tree.parent[n])] for n in kept[1:])]
    left: Laws = {}
    for node, drawn in laws.items():
        count = sum(child in new for child in tree.children(node)[: drawn.count])
        if node in new and count:
            left[new[node]] = Drawn(drawn.law, count)
    return Tree(tree.tokens[kept], np.array(parents)), left


def ranks(tree: Tree) -> list[int]:
    seen: dict[int, int] = {}
    found = []
    for parent in tree.parent.tolist():
        found.append(seen.get(parent, 0))
        seen[parent] = found[-1] + 1
    return found


def cut_by_depth_and_rank(build: Build, depth: int, rank: int) -> Build:
    def shorter(answer: Tokens, rng: np.random.Generator) -> tuple[Tree, Laws]:
        tree, laws = build(answer, rng)
        keep = [d <= depth and r <= rank for d, r in zip(tree.depth, ranks(tree), strict=True)]
        return cut(tree, laws, keep)

    return shorter


def stopping_when_flat(build_depth: int) -> Build:
    """Draw no further after a token whose law is flat: decided before the next draw."""

    def build(answer: Tokens, rng: np.random.Generator) -> tuple[Tree, Laws]:
        laws = drafter_laws(answer, lambda law: law.probabilities.max() < 0.6)
        drawn = constant_branching(0, laws, [2] * build_depth, rng)
        return drawn.tree, drawn.laws

    return build


def with_chosen(build: Build) -> Build:
    """Other drafters' nodes among the drawn ones, and drawn ones below them (as merging does)."""

    def richer(answer: Tokens, rng: np.random.Generator) -> tuple[Tree, Laws]:
        tree, laws = build(answer, rng)
        tokens, parents = tree.tokens.tolist(), tree.parent.tolist()
        for node in range(min(len(tokens), 3)):
            for token in (1, 3, int(rng.integers(VOCABULARY))):
                siblings = [t for t, p in zip(tokens, parents, strict=True) if p == node]
                if token not in siblings:
                    tokens.append(token)
                    parents.append(node)
        last = len(tokens) - 1
        grown = Tree(np.array(tokens), np.array(parents))
        if last >= len(tree):
            law = after(DRAFTER, answer, grown, last)
            grown = Tree(np.array([*tokens, law.draw(rng)]), np.array([*parents, last]))
            laws = {**laws, last: Drawn(law, 1)}
        return grown, laws

    return richer


def chosen_only(answer: Tokens, rng: np.random.Generator) -> tuple[Tree, Laws]:
    tokens, parents = [0], [-1]
    for node in range(3):
        for token in rng.permutation(VOCABULARY)[: rng.integers(1, 4)].tolist():
            if node < len(tokens):
                tokens.append(token)
                parents.append(node)
    return Tree(np.array(tokens), np.array(parents)), {}


EXACT: dict[str, Build] = {
    "V2 chain of 1": branching(1),
    "V2 chain of 3": branching(1, 1, 1),
    "V3": chosen_only,
    "V4 RSD-C 3-2-1": branching(3, 2, 1),
    "V4 RSD-C 4-4-4": branching(4, 4, 4),
    "V4 RSD-S 2x3": beams(2, 3),
    "V4 RSD-S 4x3": beams(4, 3),
    "cut RSD-C": cut_by_depth_and_rank(branching(3, 3, 2), 2, 1),
    "cut RSD-S": cut_by_depth_and_rank(beams(4, 3), 3, 1),
    "stopping when flat": stopping_when_flat(3),
    "V2 and V3": with_chosen(branching(1, 1)),
    "V4 and V3": with_chosen(beams(3, 3)),
    "cut V4 and V3": with_chosen(cut_by_depth_and_rank(branching(3, 3), 2, 1)),
}


def say(build: Build, draft: np.random.Generator, rng: np.random.Generator) -> Tokens:
    """The first three tokens of an answer, and how it came to them in steps."""
    answer: Tokens = ()
    while len(answer) < 3:
        tree, laws = build(answer, draft)
        told = answer

        def distribution(path: list[int], tree: Tree = tree, told: Tokens = told) -> Distribution:
            return after(TARGET, told, tree, path[-1])

        accepted = sampled(tree, laws, distribution, rng)
        tokens = [*tree.tokens[accepted.path[1:]].tolist(), accepted.token]
        answer = (*answer, *tokens)
    return answer[:3]


def joint(law: LawOf) -> NDArray[np.float64]:
    p = np.zeros((VOCABULARY,) * 3)
    for a, b, c in product(range(VOCABULARY), repeat=3):
        chances = law(()).probability(a), law((a,)).probability(b), law((a, b)).probability(c)
        p[a, b, c] = math.prod(chances)
    return p


def excess(counts: NDArray[np.float64], p: NDArray[np.float64]) -> float:
    """Pearson's chi-square as a normal deviate (Wilson and Hilferty 1931): above 4 once in 30,000
    tests of exact draws. Infinite where something came that cannot."""
    counts, p = counts.ravel(), p.ravel()
    if counts[p == 0].any():
        return math.inf
    expected = counts.sum() * p[p > 0]
    statistic = ((counts[p > 0] - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    spread = 2 / (9 * freedom)
    return float(((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread))


def excess_of(build: Build, answers: int = 2_500, seed: int = 0) -> float:
    draft, rng = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2])
    counts = np.zeros((VOCABULARY,) * 3)
    for _ in range(answers):
        counts[say(build, draft, rng)] += 1
    return excess(counts, joint(TARGET))


@pytest.mark.parametrize("name", EXACT)
def test_three_tokens_have_the_joint_law_of_the_target(name: str) -> None:
    assert excess_of(EXACT[name]) < 4


def greedily_drafted(answer: Tokens, rng: np.random.Generator) -> tuple[Tree, Laws]:
    """The most likely tokens, said to be drawn from the law of the drafter."""
    first = DRAFTER(answer)
    second = DRAFTER((*answer, first.mode()))
    laws = {0: Drawn(first, 1), 1: Drawn(second, 1)}
    return Tree.chain([0, first.mode(), second.mode()]), laws


def told_another_law(answer: Tokens, rng: np.random.Generator) -> tuple[Tree, Laws]:
    tree, laws = branching(1, 1)(answer, rng)
    return tree, {n: Drawn(TARGET(answer), d.count) for n, d in laws.items()}


def unlikely_ones_cut(answer: Tokens, rng: np.random.Generator) -> tuple[Tree, Laws]:
    """Drawn nodes, kept only where the drafter was sure of what came out."""
    tree, laws = branching(2, 2)(answer, rng)
    chances = [laws[p].law.probability(t) for t, p in zip(tree.tokens, tree.parent) if p >= 0]  # noqa: B905
    return cut(tree, laws, [True, *(chance > 0.35 for chance in chances)])


def kept_if_sure_of_what_follows(answer: Tokens, rng: np.random.Generator) -> tuple[Tree, Laws]:
    """What planning the size of a drawn tree from what hangs below its nodes would do."""
    tree, laws = branching(1, 1)(answer, rng)
    follows = DRAFTER((*answer, int(tree.tokens[1]))).probabilities.max()
    return (tree, laws) if follows > 0.6 else (Tree.chain([0]), {})


def rearranged(answer: Tokens, rng: np.random.Generator) -> tuple[Tree, Laws]:
    """Siblings by what the drafter thinks of them, not as they were drawn."""
    drawn = constant_branching(0, drafter_laws(answer), [2], rng)
    tokens = sorted(drawn.tokens[1:], key=lambda t: -DRAFTER(answer).probability(t))
    return Tree(np.array([0, *tokens]), drawn.tree.parent), drawn.laws


@pytest.mark.parametrize(
    "wrong",
    [
        greedily_drafted,
        told_another_law,
        unlikely_ones_cut,
        kept_if_sure_of_what_follows,
        rearranged,
    ],
    ids=lambda build: str(build.__name__),
)
def test_what_breaks_the_law_is_found(wrong: Build) -> None:
    assert excess_of(wrong) > 6


# One node, several siblings: all kinds of pairs of laws.

vectors = st.lists(st.sampled_from([0.0, 0.01, 0.1, 0.3, 1.0, 3.0]), min_size=5, max_size=5).filter(
    lambda p: sum(p) > 0
)


@settings(max_examples=12, deadline=None)
@given(p=vectors, q=vectors, siblings=st.integers(1, 4), seed=st.integers(0, 99))
def test_one_token_has_the_law_of_the_target(
    p: list[float], q: list[float], siblings: int, seed: int
) -> None:
    """V2 is one sibling; more are V4. The part that is accepted is as enumerated, too."""
    target, drafter = from_dense(np.array(p)), from_dense(np.array(q))
    rng, answers = np.random.default_rng(seed), 1_500
    counts, accepted = np.zeros(5), 0
    for _ in range(answers):
        drawn = constant_branching(0, lambda _, nodes: [drafter for _ in nodes], [siblings], rng)
        found = sampled(
            drawn.tree,
            drawn.laws,
            lambda path: target if len(path) == 1 else Distribution.certain(0),
            rng,
        )
        accepted += len(found.path) > 1
        decided = int(drawn.tokens[found.path[1]]) if len(found.path) > 1 else found.token
        assert (decided in drawn.tokens[1:]) <= (len(found.path) > 1)
        counts[decided] += 1
    # Rare outcomes together, or Pearson's statistic is no chi-square.
    order = np.argsort(-np.array(p))
    dense = np.array(p)[order] / sum(p)
    common = max(int((dense * answers >= 5).sum()), 1)
    assert not counts[order][dense == 0].any()
    if common > 1:
        merged = [*counts[order][: common - 1], counts[order][common - 1 :].sum()]
        chances = [*dense[: common - 1], dense[common - 1 :].sum()]
        assert excess(np.array(merged), np.array(chances)) < 4.5
    likely = acceptance(np.array(p), np.array(q), siblings, replace=False)
    spread = math.sqrt(max(likely * (1 - likely), 1e-9) / answers)
    assert abs(accepted / answers - likely) < 5 * spread + 1e-6


def acceptance(
    p: NDArray[np.float64], q: NDArray[np.float64], siblings: int, *, replace: bool
) -> float:
    """The probability that one of the siblings is accepted, over all ways to draw them."""
    p, q = p / p.sum(), q / q.sum()
    if not siblings:
        return 0.0
    total = 0.0
    residual = np.maximum(p - q, 0)
    for x in np.flatnonzero(q):
        accepted = min(1.0, p[x] / q[x])
        after = 0.0
        if accepted < 1 and residual.sum() > 0:
            left = q if replace else np.where(np.arange(len(q)) == x, 0.0, q)
            if left.sum() > 0:
                after = acceptance(residual, left, siblings - 1, replace=replace)
        total += q[x] * (accepted + (1 - accepted) * after)
    return total


@given(p=vectors, q=vectors)
def test_a_second_sibling_is_worth_more_if_it_differs(p: list[float], q: list[float]) -> None:
    laws = np.array(p), np.array(q)
    repeated, distinct = (acceptance(*laws, 2, replace=r) for r in (True, False))
    assert distinct >= repeated - 1e-12


def test_more_siblings_are_worth_more_if_they_differ() -> None:
    """On the mean over laws; of single ones only two siblings are certain to gain."""
    rng = np.random.default_rng(0)
    pairs = [rng.dirichlet([0.6] * 4, 2) for _ in range(40)]
    for siblings in (3, 4):
        repeated, distinct = (
            np.mean([acceptance(p, q, siblings, replace=r) for p, q in pairs])
            for r in (True, False)
        )
        assert distinct > repeated + 0.01
