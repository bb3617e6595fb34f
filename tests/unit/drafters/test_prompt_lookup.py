"""Prompt lookup finds what a scan of the conversation finds, and forgets what is taken back."""

from __future__ import annotations

from bisect import bisect_right

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quickdraft.drafters.base import Draft, DrafterContext, DraftSettings, Observation
from quickdraft.drafters.prompt_lookup import (
    GRADES,
    INNER,
    SCANNED,
    SIZES,
    PromptLookup,
    PromptLookupOptions,
    open_prompt_lookup,
)
from quickdraft.drafters.tree import Tree

conversations = st.lists(st.integers(0, 3), min_size=1, max_size=60)
option_sets = st.builds(
    PromptLookupOptions,
    min_ngram=st.integers(1, 5),
    max_ngram=st.integers(1, 20),
    branches=st.integers(1, 4),
    branch_tokens=st.integers(1, 4),
)


def observed(tokens: list[int], root: int) -> Observation:
    return Observation(tokens, Tree.chain([root, *tokens[:-1]]), range(len(tokens)))


def matched(tokens: list[int], end: int, most: int) -> int:
    """Slow twin: tokens before `end` that equal the last ones of the conversation."""
    count = 0
    while count < min(most, end) and tokens[end - count - 1] == tokens[-count - 1]:
        count += 1
    return count


def continuations(tokens: list[int], options: PromptLookupOptions) -> list[tuple[int, int]]:
    """Slow twin: scans the conversation for every size."""
    most = min(options.max_ngram, len(tokens))
    least = min(options.min_ngram, most)
    found: list[tuple[int, int]] = []
    for size in SIZES:
        if size > most or (size < least and any(size < s <= least for s in SIZES)):
            continue
        ends = [e for e in range(size, len(tokens)) if tokens[e - size : e] == tokens[-size:]]
        matches = [(matched(tokens, end, most), end) for end in ends[-SCANNED:]]
        for count, end in sorted(matches, reverse=True):
            if count >= least and tokens[end] not in [tokens[e] for e, _ in found]:
                found.append((end, count))
    return found[: options.branches]


def branches(draft: Draft) -> list[list[int]]:
    """The chains below the root."""
    tree = draft.tree
    found: list[list[int]] = []
    for token, parent in zip(tree.tokens.tolist()[1:], tree.parent.tolist()[1:], strict=True):
        if parent == 0:
            found.append([])
        found[-1].append(token)
    return found


@settings(max_examples=200, deadline=None)
@given(tokens=conversations, options=option_sets, budget=st.integers(1, 12))
def test_it_finds_what_a_scan_finds(
    tokens: list[int], options: PromptLookupOptions, budget: int
) -> None:
    drafter = PromptLookup(options)
    drafter.begin(tokens, DraftSettings())
    draft = drafter.propose(budget)
    expected = continuations(tokens, options)[:budget]
    if draft is None:
        assert not expected
        return
    assert len(draft.tree) - 1 == budget
    chains = branches(draft)
    assert len(chains) == len(expected)
    for chain, (end, _) in zip(chains, expected, strict=True):
        said = list(tokens)
        for at, token in enumerate(chain):  # beyond its own end a repetition goes on
            assert token == said[end + at]
            said.append(token)
    kinds, steps = [divmod(grade, 7) for grade in draft.grades], (1, 2, 3, 4, 6, 9, 16)
    node = 1
    for chain, (_, count) in zip(chains, expected, strict=True):
        if node == 1:
            assert kinds[node][1] == bisect_right(steps, count) - 1
        else:
            assert kinds[node] == (4, min(chains.index(chain), 2) - 1)
        for depth in range(1, len(chain)):
            assert kinds[node + depth] == (INNER, bisect_right(steps, count + depth) - 1)
        node += len(chain)
    assert len(draft.grades) == node


@settings(max_examples=100, deadline=None)
@given(
    turns=st.lists(conversations, min_size=1, max_size=5),
    keep=st.lists(st.integers(0, 80), min_size=5, max_size=5),
    answer=conversations,
)
def test_taking_back_leaves_nothing(
    turns: list[list[int]], keep: list[int], answer: list[int]
) -> None:
    drafter = PromptLookup(PromptLookupOptions())
    said: list[int] = []
    for turn, kept in zip(turns, keep, strict=False):
        said = [*said[:kept], *turn]
        drafter.begin(said, DraftSettings())
        drafter.observe(observed(answer, said[-1]))
        said += answer
    fresh = PromptLookup(PromptLookupOptions())
    fresh.begin(said, DraftSettings())
    assert vars(drafter) == vars(fresh)


def propose(tokens: list[int], budget: int = 6, **settings: int) -> list[list[int]]:
    drafter = open_prompt_lookup(DrafterContext(100, 100), {}).new()
    drafter.begin(tokens, DraftSettings(**settings))
    draft = drafter.propose(budget)
    return [] if draft is None else branches(draft)


def test_the_longest_match_wins_over_the_latest() -> None:
    first, *others = propose([1, 2, 3, 4, 9, 3, 5, 1, 2, 3])
    assert first[:3] == [4, 9, 3]
    assert [branch[0] for branch in others] == [5]


def test_a_repetition_is_read_round() -> None:
    assert propose([7, 1, 2, 1, 2], 7) == [[1, 2, 1, 2, 1, 2, 1]]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_an_answer_limits_the_draft(count: int) -> None:
    said = propose([1, 2, 3, 4, 5, 1, 2], lookup_tokens=count)
    assert sum(map(len, said)) == count


def test_an_answer_limits_the_match() -> None:
    text = [1, 2, 3, 4, 9, 3, 5, 1, 2, 3]
    assert propose(text, max_ngram=1)[0][0] == 5  # the latest of equals
    assert propose(text, max_ngram=2)[0][0] == 4


def test_sure_continuations_have_better_grades() -> None:
    def probability(tokens: list[int]) -> float:
        drafter = PromptLookup()
        drafter.begin(tokens, DraftSettings())
        draft = drafter.propose(1)
        assert draft is not None
        return GRADES[draft.grades[1]]

    split = probability([1, 2, 1, 3, 1])
    once = probability([1, 2, 1])
    agreed = probability([5, 1, 2, 6, 1, 2, 7, 1])
    long = probability([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8])
    assert split < once < agreed < long
