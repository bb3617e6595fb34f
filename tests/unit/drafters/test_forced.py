"""A grammar with one way to go on drafts it for free."""

from __future__ import annotations

from collections.abc import Sequence

from quickdraft.drafters.base import DraftSettings, Observation
from quickdraft.drafters.forced import GRADES, forced_source
from quickdraft.drafters.tree import Tree

FORM = [[7, 8, 9], None, [5, 5], None, [2]]  # None: one token of choice


def form(answer: Sequence[int]) -> Sequence[int]:
    """What a form forces after an answer so far."""
    at = 0
    for part in FORM:
        size = 1 if part is None else len(part)
        if at + size > len(answer):
            return [] if part is None else part[len(answer) - at :]
        at += size
    return []


def test_what_is_forced_is_drafted() -> None:
    drafter = forced_source(lambda: form).new()
    drafter.begin([1, 1], DraftSettings())
    root, said = 1, []
    for tokens, expected in (
        ([7], [7, 8, 9]),
        ([8, 9, 4], [8, 9]),
        ([5, 5], [5, 5]),
        ([3], []),
        ([2], [2]),
        ([6], []),
    ):
        draft = drafter.propose(8)
        assert (draft.tree.tokens.tolist() if draft else [root]) == [root, *expected]
        if draft is not None:
            assert draft.tree.is_chain
            assert GRADES[draft.grades[1]] > 0.99
        drafter.observe(Observation(tokens, Tree.chain([root]), [0]))
        said += tokens
        root = said[-1]


def test_a_budget_holds_and_an_answer_starts_anew() -> None:
    source = forced_source(lambda: form, masked=False)
    drafter = source.new()
    for _ in range(2):
        drafter.begin([4], DraftSettings())
        draft = drafter.propose(2)
        assert draft is not None
        assert draft.tree.tokens.tolist() == [4, 7, 8]
        assert source.grades[draft.grades[1]] < 0.99
        assert drafter.propose(0) is None
        drafter.observe(Observation([7], Tree.chain([4]), [0]))
