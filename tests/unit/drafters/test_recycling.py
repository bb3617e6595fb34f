"""Token Recycling drafts what its slow twin reads from a dictionary."""

from __future__ import annotations

from itertools import pairwise, product
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quickdraft.drafters.base import DrafterContext, DraftSettings, Observation
from quickdraft.drafters.recycling import (
    RANK_RATES,
    STREAKS,
    Recycling,
    Successors,
    open_recycling,
    shape_of,
)
from quickdraft.drafters.tree import Tree

VOCAB = 6
CANDIDATES = 3


class Twin:
    """The matrix as a dictionary, one row at a time."""

    def __init__(self) -> None:
        self.rows: dict[int, list[int]] = {}
        self.streak: dict[int, int] = {}

    def seed(self, tokens: list[int]) -> None:
        known = set(self.rows)
        for first, second in pairwise(tokens):
            if first not in known:
                self.rows[first] = [second]

    def observe(self, observation: Observation) -> None:
        assert observation.top is not None
        before = {token: row[0] for token, row in self.rows.items()}
        streak = dict(self.streak)
        for nodes in (range(len(observation.tree)), observation.path):
            for node in nodes:
                token = int(observation.tree.tokens[node])
                row = observation.top[node].tolist()[:CANDIDATES]
                held = before.get(token) == row[0]
                self.streak[token] = min(streak.get(token, 0) + 1, STREAKS - 1) if held else 0
                self.rows[token] = row

    def read(self, path: tuple[int, ...], root: int) -> int | None:
        for rank in path:
            row = self.rows.get(root, [])
            if rank >= len(row):
                return None
            root = row[rank]
        return root


@st.composite
def observations(draw: st.DrawFn, root: int) -> Observation:
    """A random tree below a root, a path in it, and different candidates after every node."""
    n = draw(st.integers(1, 6))
    parents = [-1] + [draw(st.integers(0, i - 1)) for i in range(1, n)]
    tokens = [root] + [draw(st.integers(0, VOCAB - 1)) for _ in range(1, n)]
    path = [draw(st.integers(0, n - 1))]
    while parents[path[0]] >= 0:
        path.insert(0, parents[path[0]])
    top = [draw(st.permutations(range(VOCAB))) for _ in range(n)]
    decided = [tokens[node] for node in path[1:]] + [top[path[-1]][0]]
    return Observation(
        decided, Tree(np.array(tokens), np.array(parents)), path, np.array(top, np.int64)
    )


@settings(max_examples=100, deadline=None)
@given(data=st.data(), prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20))
def test_it_drafts_what_the_twin_drafts(data: st.DataObject, prompt: list[int]) -> None:
    drafter, twin = Recycling(Successors(VOCAB, CANDIDATES), 8), Twin()
    drafter.begin(prompt, DraftSettings())
    twin.seed(prompt)
    root = prompt[-1]
    for _ in range(data.draw(st.integers(0, 4))):
        observation = data.draw(observations(root))
        drafter.observe(observation)
        twin.observe(observation)
        root = observation.tokens[-1]
    shape = shape_of(8, CANDIDATES)
    paths: list[tuple[int, ...]] = [()]
    for parent, rank in zip(shape.parent.tolist()[1:], shape.rank.tolist()[1:], strict=True):
        paths.append((*paths[parent], rank))
    expected = {path: twin.read(path, root) for path in paths[1:]}
    expected = {path: token for path, token in expected.items() if token is not None}
    draft = drafter.propose(8)
    if draft is None:
        assert not expected
        return
    found: list[tuple[tuple[int, ...], int]] = [((), root)]
    pairs = zip(draft.tree.tokens.tolist(), draft.tree.parent.tolist(), draft.grades, strict=True)
    for token, parent, grade in list(pairs)[1:]:
        path, above = found[parent]
        streak, rank = divmod(grade, len(RANK_RATES))
        assert streak == twin.streak.get(above, 0)
        found.append(((*path, rank), token))
    assert dict(found[1:]) == expected


@pytest.mark.parametrize("candidates", [1, 3])
def test_the_shape_holds_the_likeliest_paths(candidates: int) -> None:
    shape = shape_of(12, candidates)
    likely = [1.0]
    for parent, rank in zip(shape.parent.tolist()[1:], shape.rank.tolist()[1:], strict=True):
        likely.append(likely[parent] * RANK_RATES[rank])
    every = [
        prod(RANK_RATES[rank] for rank in path)
        for depth in range(1, 13 if candidates == 1 else 7)
        for path in product(range(candidates), repeat=depth)
    ]
    assert sorted(likely[1:], reverse=True) == pytest.approx(sorted(every, reverse=True)[:12])


def test_conversations_share_what_they_learn() -> None:
    source = open_recycling(DrafterContext(VOCAB, 64), {"candidates": 2})
    first, second = source.new(), source.new()
    first.begin([1], DraftSettings())
    second.begin([1], DraftSettings())
    assert second.propose(4) is None
    first.observe(Observation([2], Tree.chain([1]), [0], np.array([[2, 3]])))
    draft = second.propose(4)
    assert draft is not None
    assert draft.tree.tokens.tolist() == [1, 2, 3]


def test_fewer_candidates_than_asked_for_leave_no_old_ones() -> None:
    matrix = Successors(VOCAB, 3)
    at, accepted = np.array([1]), np.array([0])
    matrix.update(at, np.array([[2, 3, 4]]), accepted)
    matrix.update(at, np.array([[3]]), accepted)
    assert matrix.ids[1].tolist() == [3, VOCAB, VOCAB]


def test_memory_stays_below_five_megabytes() -> None:
    assert open_recycling(DrafterContext(151_936, 64), {}).nbytes() < 5e6
