"""Acceptance rules: which drafted tokens would the target have said itself? Pure functions.

A rule walks a tree from its root. At each node it asks for the target's distribution after that
path, decides the next token, and goes on if the tree holds that token. Every rule decides one token
more than it accepts. `greedy` and `sampled` change nothing about the answer; `typical` and `judged`
do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from quickdraft.drafters.base import Drawn
from quickdraft.drafters.distribution import Distribution
from quickdraft.drafters.tree import Tree
from quickdraft.runtime.generation import GenerationConfig

NodeDistribution = Callable[[list[int]], Distribution]
"""The target's processed distribution after a path of nodes (root first). Asked only where needed,
at most once a node and after its parent; penalties see the tokens of the path."""


@dataclass(frozen=True)
class Accepted:
    """path: nodes from the root to the last accepted one, rising. token: the token decided after
    them. The tokens decided by a step are those of path[1:], then `token`."""

    path: list[int]
    token: int


Rule = Callable[[Tree, Mapping[int, Drawn], NodeDistribution, np.random.Generator], Accepted]
"""(tree, how children were drawn by node, the target's distributions, random numbers)."""


def rule_for(config: GenerationConfig) -> Rule:
    """The rule an answer asks for."""
    if config.acceptance == "judge":
        return partial(judged, sample=config.do_sample, least=config.judge_threshold)
    if not config.do_sample:
        return greedy  # what `typical` comes to where all probability is on one token
    if config.acceptance == "typical":
        threshold, alpha = config.posterior_threshold, config.posterior_alpha
        return partial(typical, threshold=threshold, alpha=alpha)
    return sampled


def greedy(
    tree: Tree,
    laws: Mapping[int, Drawn],
    distribution: NodeDistribution,
    rng: np.random.Generator,
) -> Accepted:
    """Accept a node iff it is the most likely token after its parent (V1)."""
    path = [0]
    while True:
        child, token = _likeliest(tree, path[-1], distribution(path))
        if child is None:
            return Accepted(path, token)
        path.append(child)


def sampled(
    tree: Tree,
    laws: Mapping[int, Drawn],
    distribution: NodeDistribution,
    rng: np.random.Generator,
) -> Accepted:
    """Decide every token with the target's probability of it, however the tree came about.

    Drawn children are tried in turn by recursive rejection (V4; Jeon et al., arXiv 2402.14160),
    which for a single one is the rejection rule of chains (V2; Leviathan et al., arXiv
    2211.17192). What they leave of the distribution is decided by one draw, which is then looked
    for among the chosen children. This has the same outcome probabilities as trying these in turn
    (V3), and one random number decides: without drawn children an answer with a seed is, token for
    token, the one of plain decoding.
    """
    path = [0]
    while True:
        child, token = _drawn(tree, path[-1], distribution(path), laws, rng)
        if child is None:
            return Accepted(path, token)
        path.append(child)


def judged(
    tree: Tree,
    laws: Mapping[int, Drawn],
    distribution: NodeDistribution,
    rng: np.random.Generator,
    *,
    sample: bool,
    least: float,
    fine: Sequence[float] = (),
) -> Accepted:
    """Accept what `greedy`, or with `sample` `sampled`, accepts, and where that is none of the
    children the one that the judge is surest of, if it is surer of it than `least` (V6; Bachmann et
    al., Judge Decoding, arXiv 2501.19309). Lossy: tokens come that the target would not have said.

    fine: by node, the judge's probability that its token will do; empty for a tree of one node.
    """
    path = [0]
    while True:
        p = distribution(path)
        child, token = (
            _drawn(tree, path[-1], p, laws, rng) if sample else _likeliest(tree, path[-1], p)
        )
        if child is None and path[-1] < len(tree) - 1:
            children = tree.children(path[-1])
            surest = max(children, key=lambda node: fine[node], default=None)
            if surest is not None and fine[surest] > least:
                child = surest
        if child is None:
            return Accepted(path, token)
        path.append(child)


def typical(
    tree: Tree,
    laws: Mapping[int, Drawn],
    distribution: NodeDistribution,
    rng: np.random.Generator,
    *,
    threshold: float,
    alpha: float,
) -> Accepted:
    """Accept a node iff its probability is above min(threshold, alpha * exp(-entropy)) (V5; Cai et
    al., Medusa, arXiv 2401.10774). Lossy: tokens that are likely enough come more often than the
    target says them.

    Takes the longest accepted path, of equally long ones the likeliest, and draws the token after
    it.
    """
    best: tuple[int, float, list[int], Distribution] | None = None
    open_paths = [([0], 0.0)]
    while open_paths:  # depth first, so that a path is asked for right after its beginning
        path, log_probability = open_paths.pop()
        p = distribution(path)
        if best is None or (len(path), log_probability) > best[:2]:
            best = len(path), log_probability, path, p
        least = min(threshold, alpha * float(np.exp(-_entropy(p))))
        for child in reversed(tree.children(path[-1])):
            probability = p.probability(int(tree.tokens[child]))
            if probability > least:
                open_paths.append(([*path, child], log_probability + float(np.log(probability))))
    assert best is not None  # the root was visited  # noqa: S101
    return Accepted(best[2], best[3].draw(rng))


def _likeliest(tree: Tree, node: int, p: Distribution) -> tuple[int | None, int]:
    """The likeliest token after a node, and the child that carries it, if any."""
    token = p.mode()
    return _child(tree, node, token), token


def _drawn(
    tree: Tree,
    node: int,
    p: Distribution,
    laws: Mapping[int, Drawn],
    rng: np.random.Generator,
) -> tuple[int | None, int]:
    """The token after a node, drawn, and the child that carries it, if any."""
    drawn = laws.get(node)
    if drawn is not None:
        child, p = _recursive_rejection(tree, node, drawn, p, rng)
        if child is not None:
            return child, int(tree.tokens[child])
    token = p.draw(rng)
    return _child(tree, node, token), token


def _recursive_rejection(
    tree: Tree, node: int, drawn: Drawn, p: Distribution, rng: np.random.Generator
) -> tuple[int | None, Distribution]:
    """The drawn child that is accepted, if any, and what the rejected ones leave of `p`."""
    law = drawn.law
    for child in tree.children(node)[: drawn.count]:
        token = int(tree.tokens[child])
        chance = law.probability(token)
        if chance == 0:
            continue  # not from this law, so it counts as chosen
        if rng.random() * chance < p.probability(token):
            return child, p
        p = _residual(p, law)
        law = _without(law, token)
    return None, p


def _without(law: Distribution, token: int) -> Distribution:
    """The law of the next draw; without any probability if all tokens were drawn."""
    left = np.where(law.ids == token, 0.0, law.probabilities)
    total = left.sum()
    return Distribution(law.ids, left / total if total > 0 else left)


def _residual(p: Distribution, q: Distribution) -> Distribution:
    """What is left of `p` where `q` had its chance: max(0, p - q), normalised."""
    at = np.minimum(np.searchsorted(q.ids, p.ids), len(q.ids) - 1)
    covered = np.where(q.ids[at] == p.ids, q.probabilities[at], 0.0)
    left = np.maximum(p.probabilities - covered, 0.0)
    total = left.sum()
    # Nothing is left only if p is q up to rounding, and then a rejection is a rounding, too.
    return Distribution(p.ids, left / total) if total > 0 else p


def _child(tree: Tree, node: int, token: int) -> int | None:
    if node == len(tree) - 1:  # children come later than their parents
        return None
    return next((c for c in tree.children(node) if tree.tokens[c] == token), None)


def _entropy(p: Distribution) -> float:
    """In nats."""
    weights = p.probabilities[p.probabilities > 0]
    return float(-(weights * np.log(weights)).sum())
