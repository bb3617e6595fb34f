"""Merging loses nothing, doubles nothing, and keeps drawn siblings in their order."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraft.drafters.base import Draft, Drawn
from quickdraft.drafters.distribution import Distribution
from quickdraft.drafters.merge import Merged, chain_of, cut, merge
from quickdraft.drafters.tree import Tree

ROOT = 9
GRADES = 3
LAW = Distribution(np.arange(4), np.full(4, 0.25))


@st.composite
def drafts(draw: st.DrawFn, with_laws: bool = False) -> Draft:
    """A random tree of few tokens, siblings distinct; with laws, some nodes have drawn children."""
    parents, tokens = [-1], [ROOT]
    taken: dict[int, list[int]] = {0: []}
    for _ in range(draw(st.integers(0, 12))):
        parent = draw(st.integers(0, len(parents) - 1))
        free = [t for t in range(4) if t not in taken[parent]]
        if free:
            token = draw(st.sampled_from(free))
            taken[parent].append(token)
            taken[len(parents)] = []
            parents.append(parent)
            tokens.append(token)
    grades = [draw(st.integers(0, GRADES - 1)) for _ in parents]
    laws = {}
    if with_laws:
        for node, below in taken.items():
            if below and draw(st.booleans()):
                laws[node] = Drawn(LAW, draw(st.integers(1, len(below))))
    return Draft(Tree(np.array(tokens), np.array(parents)), grades, laws)


some_drafts = st.lists(st.none() | drafts(), max_size=4)
some_drafts_with_laws = st.lists(st.none() | drafts() | drafts(with_laws=True), max_size=4)


def rate(drafter: int, grade: int, depth: int) -> float:
    """Different for every argument; the largest below 1."""
    return (1 + 5 * drafter + 20 * grade + depth) / 80


def paths(tokens: Sequence[int], parents: Sequence[int]) -> list[tuple[int, ...]]:
    """The tokens from below the root to each node."""
    found: list[tuple[int, ...]] = [()]
    for token, parent in list(zip(tokens, parents, strict=True))[1:]:
        found.append((*found[parent], token))
    return found


def of_draft(draft: Draft) -> list[tuple[int, ...]]:
    return paths(draft.tree.tokens.tolist(), draft.tree.parent.tolist())


def check_form(merged: Merged) -> None:
    """Parents first, one root, no siblings alike, drawn children before chosen ones."""
    assert merged.tokens[0] == ROOT
    assert merged.parent[0] == -1
    assert all(0 <= p < i for i, p in enumerate(merged.parent) if i)
    edges = list(zip(merged.parent, merged.tokens, strict=True))
    assert len(set(edges)) == len(edges)
    assert len(merged.likely) == len(merged.by) == len(merged)
    assert merged.likely[0] == 1
    for node, law in merged.laws.items():
        assert 1 <= law.count <= merged.parent.count(node)
    assert len(merged.drawn()) == sum(law.count for law in merged.laws.values())
    assert len(merged.tree) == len(merged)


@given(some_drafts)
def test_the_paths_are_those_of_all_drafts(given_drafts: list[Draft | None]) -> None:
    merged = merge(ROOT, given_drafts, rate)
    check_form(merged)
    wanted = {path for draft in given_drafts if draft for path in of_draft(draft)} | {()}
    found = paths(merged.tokens, merged.parent)
    assert set(found) == wanted
    assert len(found) == len(wanted)


@given(some_drafts)
def test_a_node_knows_who_proposed_it_and_is_as_likely_as_they_say(
    given_drafts: list[Draft | None],
) -> None:
    """The slow twin: look every path up in every draft."""
    merged = merge(ROOT, given_drafts, rate)
    found = paths(merged.tokens, merged.parent)
    asked: dict[int, list[float]] = {}
    for node, path in enumerate(found[1:], 1):
        proposers, rates = [], []
        for drafter, draft in enumerate(given_drafts):
            if draft is not None and path in of_draft(draft):
                grade = draft.grades[of_draft(draft).index(path)]
                proposers.append((drafter, grade))
                rates.append(rate(drafter, grade, len(path)))
        assert merged.by[node] == tuple(proposers)
        asked.setdefault(merged.parent[node], []).append(fmean(rates))
    for parent, sure in asked.items():
        found_likely = [x for x, p in zip(merged.likely, merged.parent, strict=True) if p == parent]
        left = min(1, (1 - max(sure)) / (sum(sure) - max(sure) or 1))
        # Of equally sure ones either may be the one that is not lowered: rounding decides.
        surest = [i for i, x in enumerate(sure) if x == pytest.approx(max(sure))]
        shared = [[x if i == s else x * left for i, x in enumerate(sure)] for s in surest]
        assert any(found_likely == pytest.approx(one) for one in shared)


@given(some_drafts_with_laws)
def test_drawn_siblings_keep_their_order_and_come_first(
    given_drafts: list[Draft | None],
) -> None:
    merged = merge(ROOT, given_drafts, rate)
    check_form(merged)
    found = paths(merged.tokens, merged.parent)
    for node, law in merged.laws.items():
        children = [i for i, p in enumerate(merged.parent) if p == node][: law.count]
        orders = []
        for draft in given_drafts:
            if draft is None or found[node] not in of_draft(draft):
                continue
            old = of_draft(draft).index(found[node])
            if old in draft.laws:
                below = draft.tree.children(old)[: draft.laws[old].count]
                orders.append([int(draft.tree.tokens[i]) for i in below])
        assert [merged.tokens[i] for i in children] in orders


@given(some_drafts, drafts(with_laws=True), some_drafts)
def test_one_draft_with_laws_loses_nothing(
    before: list[Draft | None], drawn: Draft, after: list[Draft | None]
) -> None:
    given_drafts = [*before, drawn, *after]
    merged = merge(ROOT, given_drafts, rate)
    found = paths(merged.tokens, merged.parent)
    wanted = {path for draft in given_drafts if draft for path in of_draft(draft)}
    assert set(found) == wanted
    for node, law in drawn.laws.items():
        assert merged.laws[found.index(of_draft(drawn)[node])] == law
    # What is known of a drawn node does not depend on who else proposed it.
    of_law = {
        old for node, law in drawn.laws.items() for old in drawn.tree.children(node)[: law.count]
    }
    for old in of_law:
        path = of_draft(drawn)[old]
        expected = rate(len(before), drawn.grades[old], len(path))
        assert merged.likely[found.index(path)] == expected


def test_two_laws_do_not_hold_at_one_node() -> None:
    def drawn(tokens: list[int], weights: list[float]) -> Draft:
        parents = np.array([-1, *[0] * len(tokens), 1])
        law = Drawn(Distribution(np.arange(4), np.array(weights)), len(tokens))
        tree = Tree(np.array([ROOT, *tokens, 3]), parents)
        return Draft(tree, [0] * len(tree), {0: law, 1: Drawn(law.law, 1)})

    first, second = drawn([1, 0], [0.25] * 4), drawn([2, 1], [0.1, 0.2, 0.3, 0.4])
    merged = merge(ROOT, [first, second], rate)
    assert paths(merged.tokens, merged.parent) == [(), (1,), (0,), (1, 3)]
    assert merged.laws == first.laws
    assert all(by == ((0, 0),) for by in merged.by[1:])


@given(some_drafts_with_laws, st.data())
def test_a_cut_is_what_was_kept(given_drafts: list[Draft | None], data: st.DataObject) -> None:
    merged = merge(ROOT, given_drafts, rate)
    drawn = merged.drawn()
    kept: list[int] = []
    full: set[int] = set()  # nodes that have lost a drawn child
    for node, parent in list(enumerate(merged.parent))[1:]:
        if (not parent or parent in kept) and not (node in drawn and parent in full):
            if data.draw(st.booleans()):
                kept.append(node)
            elif node in drawn:
                full.add(parent)
    part = cut(merged, data.draw(st.permutations(kept)))
    check_form(part)
    found = paths(merged.tokens, merged.parent)
    assert paths(part.tokens, part.parent) == [found[node] for node in [0, *kept]]
    assert part.likely == [merged.likely[node] for node in [0, *kept]]
    assert part.by == [merged.by[node] for node in [0, *kept]]
    stays = [found[node] for node in kept if node in drawn]
    assert [paths(part.tokens, part.parent)[node] for node in sorted(part.drawn())] == stays


def test_a_cut_that_is_not_closed_is_refused() -> None:
    chain = Draft(Tree.chain([ROOT, 1, 2]), [0, 0, 0])
    with pytest.raises(ValueError, match="children that are kept"):
        cut(merge(ROOT, [chain], rate), [2])


def test_a_drawn_node_is_not_kept_without_those_before_it() -> None:
    tree = Tree(np.array([ROOT, 1, 2, 3]), np.array([-1, 0, 0, 0]))
    merged = merge(ROOT, [Draft(tree, [0] * 4, {0: Drawn(LAW, 2)})], rate)
    with pytest.raises(ValueError, match="drawn"):
        cut(merged, [2])
    assert cut(merged, [1, 3]).laws == {0: Drawn(LAW, 1)}
    assert cut(merged, [3]).laws == {}


@given(some_drafts)
def test_a_chain_brings_most_of_all_paths(given_drafts: list[Draft | None]) -> None:
    merged = merge(ROOT, given_drafts, rate)

    def expected(node: int) -> float:
        """Accepted nodes if only the path to `node` is verified."""
        path = []
        while node > 0:
            path.append(merged.likely[node])
            node = merged.parent[node]
        total, reach = 0.0, 1.0
        for likely in reversed(path):
            reach *= likely
            total += reach
        return total

    chain = chain_of(merged)
    assert chain.parent == list(range(-1, len(chain) - 1))
    of_chain = float(np.cumprod(chain.likely)[1:].sum())
    assert of_chain == pytest.approx(max(expected(node) for node in range(len(merged))))


@given(some_drafts_with_laws)
def test_a_chain_follows_what_was_drawn_first(given_drafts: list[Draft | None]) -> None:
    merged = merge(ROOT, given_drafts, rate)
    chain = chain_of(merged)
    check_form(chain)
    found = paths(merged.tokens, merged.parent)
    assert set(paths(chain.tokens, chain.parent)) <= set(found)
    for path in paths(chain.tokens, chain.parent):
        node = found.index(path)
        if node in merged.laws:
            first = merged.parent.index(node)
            assert (*path, merged.tokens[first]) in paths(chain.tokens, chain.parent)
            assert chain.laws[len(path)] == Drawn(merged.laws[node].law, 1)


def test_nothing_proposed_is_the_root_alone() -> None:
    merged = merge(ROOT, [None, None], rate)
    assert (merged.tokens, merged.parent) == ([ROOT], [-1])
    assert len(chain_of(merged)) == 1
    assert cut(merged, []) == merged
