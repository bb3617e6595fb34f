"""The tree grown is the likeliest there is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quickdraft.drafters.base import Draft
from quickdraft.drafters.best_first import Successor, grow

weights = st.lists(st.floats(0.05, 1.0), max_size=3)


def likelihoods(draft: Draft, table: dict[int, list[Successor]]) -> list[float]:
    """Products of estimates from the root to every node, which must be edges of the table."""
    products = [1.0]
    tokens = draft.tree.tokens.tolist()
    for node in range(1, len(tokens)):
        parent = int(draft.tree.parent[node])
        edges = {token: (p, grade) for token, p, grade in table[tokens[parent]]}
        probability, grade = edges[tokens[node]]
        assert draft.grades[node] == grade
        products.append(products[parent] * probability)
    return products


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(weights, min_size=4, max_size=4),
    budget=st.integers(1, 9),
    floor=st.sampled_from([0.0, 0.1, 0.4]),
)
def test_the_likeliest_nodes_are_taken(rows: list[list[float]], budget: int, floor: float) -> None:
    table = {
        token: [(t, p, 7 * token + t) for t, p in enumerate(sorted(row, reverse=True))]
        for token, row in enumerate(rows)
    }
    draft = grow((0,), lambda context: table[context[-1]], budget, floor)
    everything: list[float] = []

    def walk(token: int, likely: float, depth: int) -> None:
        for child, probability, _ in table[token]:
            if likely * probability >= floor and depth < budget:
                everything.append(likely * probability)
                walk(child, likely * probability, depth + 1)

    walk(0, 1.0, 0)
    best = sorted(everything, reverse=True)[:budget]
    if draft is None:
        assert not best
        return
    assert sorted(likelihoods(draft, table)[1:], reverse=True) == pytest.approx(best)


def test_nodes_see_their_own_path() -> None:
    seen: list[tuple[int, ...]] = []

    def successors(context: tuple[int, ...]) -> list[Successor]:
        seen.append(context)
        return [(len(seen), 0.9, 0)]

    grow((8, 9), successors, 2, 0.0)
    assert seen[:3] == [(8, 9), (9, 1), (1, 2)]
