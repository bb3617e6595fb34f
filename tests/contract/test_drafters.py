"""What every drafter promises, and what is done with proposals that break it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.answers import (
    ALL,
    VOCAB,
    open_source,
)
from tiny.toy_backend import (
    hashed,
    toy_source,
)

from quickdraft.drafters.base import Draft, DraftSettings, Drawn, Observation
from quickdraft.drafters.distribution import Distribution
from quickdraft.drafters.tree import Tree
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.sampling import process
from quickdraft.runtime.speculation import is_usable


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("draws", [False, True], ids=["greedy", "drawn"])
@settings(max_examples=20, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    other=st.lists(st.integers(0, 3), min_size=1, max_size=20),
    blocks=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=6),
    budget=st.integers(0, 12),
)
def test_drafters_keep_the_rules(
    name: str,
    draws: bool,
    prompt: list[int],
    other: list[int],
    blocks: list[list[int]],
    budget: int,
) -> None:
    """Within budget, rooted in the last token, siblings distinct; state follows what it is told."""
    logits = hashed(VOCAB)
    law = None
    if draws:
        config = GenerationConfig(temperature=1.0, top_k=5)
        law = lambda row, tokens: process(row, np.array(tokens), 0, config)  # noqa: E731
    told = DraftSettings(law=law, seed=7)
    sources = [open_source(name, logits) for _ in range(2)]
    drafters = [source.new() for source in sources]
    for drafter in drafters:
        drafter.begin(other, told)
        drafter.begin(prompt, told)
    said = list(prompt)
    for block in [[], *blocks]:
        if block:
            observation = observe(said, block, sources[0].top)
            said += block
            for drafter in drafters:
                drafter.observe(observation)
        draft, same = (drafter.propose(budget) for drafter in drafters)
        assert (draft is None) == (same is None)
        if draft is None or same is None:
            continue
        assert draft.tree.tokens.tolist() == same.tree.tokens.tolist()
        assert draft.tree.parent.tolist() == same.tree.parent.tolist()
        assert list(draft.grades) == list(same.grades)
        assert is_usable(draft, sources[0], said[-1], budget, VOCAB)
        edges = list(zip(draft.tree.parent.tolist(), draft.tree.tokens.tolist(), strict=True))
        assert len(set(edges)) == len(edges)
        assert law is not None or not draft.laws
    assert sources[0].nbytes() >= 0
    for source in sources:
        source.close()


def observe(said: list[int], block: list[int], top: int) -> Observation:
    """A chain of which all but the last token was drafted."""
    tree = Tree.chain([said[-1], *block[:-1]])
    ids = np.array([[(t + i) % VOCAB for i in range(top)] for t in tree.tokens.tolist()], np.int64)
    states = {1: np.zeros((len(block), 4), np.float32)}
    path = list(range(len(block)))
    return Observation(block, tree, path, ids if top else None, states)


@pytest.mark.parametrize("name", ALL)
def test_a_history_that_is_gone_leaves_no_trace(name: str) -> None:
    """What a drafter learnt in an answer may stay; the tokens of a conversation must not."""
    logits = hashed(VOCAB)
    drafter, twin = (open_source(name, logits).new() for _ in range(2))
    drafter.begin([5, 6, 7, 5, 6, 7, 5, 6], DraftSettings())
    for each in (drafter, twin):
        each.begin([1, 2, 3, 1, 2], DraftSettings())
    draft, same = drafter.propose(4), twin.propose(4)
    assert (draft is None) == (same is None)
    if draft is not None and same is not None:
        assert draft.tree.tokens.tolist() == same.tree.tokens.tolist()


@pytest.mark.parametrize(
    ("tokens", "parents", "usable"),
    [
        ([7, 1, 2], [-1, 0, 0], True),
        ([7, 1, 2, 3], [-1, 0, 1, 2], False),  # over the budget of two
        ([7], [-1], False),  # nothing proposed
        ([6, 1], [-1, 0], False),  # another root
        ([7, 1], [-1, -1], False),  # two roots
        ([7, VOCAB], [-1, 0], False),
        ([7, -1], [-1, 0], False),
    ],
)
def test_proposals_that_cannot_be_verified_are_dropped(
    tokens: list[int], parents: list[int], usable: bool
) -> None:
    tree = Tree(np.array(tokens), np.array(parents))
    source = toy_source(lambda tokens, budget: None)
    assert is_usable(Draft(tree, [0] * len(tokens)), source, 7, 2, VOCAB) == usable
    assert not is_usable(Draft(tree, [3] * len(tokens)), source, 7, 2, VOCAB)
    assert not is_usable(Draft(tree, [0]), source, 7, 2, VOCAB)


@pytest.mark.parametrize(
    ("drawn", "usable"),
    [
        ([(0, [1, 2], 2)], True),
        ([(0, [1, 2], 1)], True),
        ([(0, [1, 2], 3)], False),  # more than there are
        ([(0, [1, 2], 0)], False),
        ([(0, [1, 3], 2)], False),  # the law does not hold 2
        ([(1, [1, 2], 1)], False),  # of a node without children
        ([(9, [1, 2], 1)], False),
    ],
)
def test_laws_that_cannot_be_true_are_dropped(
    drawn: list[tuple[int, list[int], int]], usable: bool
) -> None:
    laws = {
        node: Drawn(Distribution(np.array(ids), np.full(len(ids), 0.5)), count)
        for node, ids, count in drawn
    }
    draft = Draft(Tree(np.array([7, 1, 2]), np.array([-1, 0, 0])), [0, 0, 0], laws)
    assert is_usable(draft, toy_source(lambda tokens, budget: None), 7, 2, VOCAB) == usable
