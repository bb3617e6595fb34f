"""Trees drawn without replacement: their shapes, and the law of what is drawn."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraft.drafters.distribution import Distribution
from quickdraft.drafters.rsd import DrawnTree, LawsAfter, constant_branching, stochastic_beams

LAW = Distribution(np.array([2, 3, 5, 7]), np.array([0.5, 0.3, 0.15, 0.05]))


def always(law: Distribution) -> LawsAfter:
    return lambda drawn, nodes: [law] * len(nodes)


def orders(law: Distribution, count: int) -> dict[tuple[int, ...], float]:
    """The probability of every order in which `count` tokens are drawn without replacement."""
    found = {}
    for tokens in itertools.permutations(law.ids.tolist(), count):
        left, chance = 1.0, 1.0
        for token in tokens:
            chance *= law.probability(token) / left
            left -= law.probability(token)
        found[tokens] = chance
    return found


def agree(counts: Counter[tuple[int, ...]], law: dict[tuple[int, ...], float]) -> None:
    draws = counts.total()
    assert set(counts) <= set(law)
    for outcome, chance in law.items():
        spread = math.sqrt(draws * chance * (1 - chance))
        assert abs(counts[outcome] - draws * chance) < 4.5 * spread + 1


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_siblings_come_in_the_order_of_draws_without_replacement(count: int) -> None:
    rng = np.random.default_rng(count)
    for draw in (
        lambda: constant_branching(0, always(LAW), [count], rng),
        lambda: stochastic_beams(0, always(LAW), count, 1, rng),
    ):
        agree(Counter(tuple(draw().tokens[1:]) for _ in range(4_000)), orders(LAW, count))


def test_beams_are_sequences_without_replacement() -> None:
    """Of all sequences of two tokens, as if these had been drawn from their joint law; though of
    the three first tokens only two are followed."""
    first = Distribution(np.arange(3), np.array([0.5, 0.3, 0.2]))
    second = [np.array([0.6, 0.4]), np.array([0.1, 0.9]), np.array([0.5, 0.5])]

    def laws_after(drawn: DrawnTree, nodes: Sequence[int]) -> list[Distribution]:
        tokens = [drawn.tokens[node] for node in nodes]
        return [first] if nodes[0] == 0 else [Distribution(np.arange(2), second[t]) for t in tokens]

    joint = np.concatenate([p * q for p, q in zip(first.probabilities, second, strict=True)])
    sequences = Distribution(np.arange(6), joint)
    rng, counts = np.random.default_rng(0), Counter[tuple[int, ...]]()
    for _ in range(8_000):
        drawn = stochastic_beams(0, laws_after, 2, 2, rng)
        leaves = [n for n in range(1, len(drawn)) if drawn.tree.depth[n] == 2]
        counts[tuple(2 * drawn.tokens[drawn.parent[n]] + drawn.tokens[n] for n in leaves)] += 1
    agree(counts, orders(sequences, 2))


def check_form(drawn: DrawnTree) -> None:
    tree = drawn.tree
    edges = list(zip(drawn.parent, drawn.tokens, strict=True))
    assert len(set(edges)) == len(edges)
    assert sum(law.count for law in drawn.laws.values()) == len(tree) - 1
    for node, law in drawn.laws.items():
        children = tree.children(node)
        assert law.count == len(children)
        assert [drawn.ranks[child] for child in children] == list(range(len(children)))
        assert all(law.law.probability(drawn.tokens[child]) > 0 for child in children)


@given(widths=st.lists(st.integers(1, 5), max_size=3), seed=st.integers(0, 99))
def test_branching_is_as_asked_where_there_are_enough_tokens(widths: list[int], seed: int) -> None:
    drawn = constant_branching(9, always(LAW), widths, np.random.default_rng(seed))
    check_form(drawn)
    sizes = list(itertools.accumulate([1, *widths], lambda size, w: size * min(w, 4)))
    assert np.bincount(drawn.tree.depth).tolist() == sizes


@given(width=st.integers(1, 6), depth=st.integers(1, 4), seed=st.integers(0, 99))
def test_beams_are_as_many_as_asked_where_there_are_enough(
    width: int, depth: int, seed: int
) -> None:
    drawn = stochastic_beams(9, always(LAW), width, depth, np.random.default_rng(seed))
    check_form(drawn)
    sizes = [min(width, 4**level) for level in range(depth + 1)]
    assert np.bincount(drawn.tree.depth).tolist() == [1, *sizes[1:]]


@pytest.mark.parametrize("kind", ["branching", "beams"])
def test_a_tree_ends_where_its_drafter_goes_no_further(kind: str) -> None:
    """And its laws are asked level by level."""
    asked: list[list[int]] = []

    def laws_after(drawn: DrawnTree, nodes: Sequence[int]) -> list[Distribution | None]:
        asked.append([drawn.tokens[node] for node in nodes])
        return [LAW if drawn.tokens[node] in (0, 2) else None for node in nodes]

    rng = np.random.default_rng(0)
    if kind == "branching":
        drawn = constant_branching(0, laws_after, [2, 2, 2, 2], rng)
    else:
        drawn = stochastic_beams(0, laws_after, 2, 4, rng)
    ended = [n for n in range(1, len(drawn)) if drawn.tokens[n] != 2]
    assert all(not drawn.tree.children(node) for node in ended)
    assert 2 <= len(asked) <= 4
    assert asked[0] == [0]


def test_one_possible_token_is_drawn_once() -> None:
    certain = Distribution(np.array([1, 4]), np.array([0.0, 1.0]))
    rng = np.random.default_rng(0)
    for drawn in (
        constant_branching(0, always(certain), [3, 3], rng),
        stochastic_beams(0, always(certain), 3, 2, rng),
    ):
        assert drawn.tokens == [0, 4, 4]
        assert drawn.parent == [-1, 0, 1]
