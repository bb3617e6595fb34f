"""Drafts copied from the source of an encoder-decoder model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quickdraft.drafters.base import DrafterContext, DraftSettings, Observation
from quickdraft.drafters.prompt_lookup import PromptLookup
from quickdraft.drafters.source_lookup import SourceLookup, open_source_lookup
from quickdraft.drafters.tree import Tree


def test_the_source_goes_on() -> None:
    source = open_source_lookup(DrafterContext(100, 100), {"branches": 1})
    drafter = source.new()
    drafter.begin([0, 11], DraftSettings(source=[10, 11, 12, 13, 14]))
    draft = drafter.propose(3)
    assert draft is not None
    assert draft.tree.tokens.tolist() == [11, 12, 13, 14]
    observed = Observation([12, 13], Tree.chain([11, 12]), [0, 1])
    drafter.observe(observed)
    draft = drafter.propose(1)
    assert draft is not None
    assert draft.tree.tokens.tolist() == [13, 14]


def test_another_source_forgets_the_first() -> None:
    drafter = SourceLookup()
    drafter.begin([0, 11], DraftSettings(source=[10, 11, 12]))
    drafter.begin([0, 11], DraftSettings(source=[20, 21, 22]))
    assert drafter.propose(4) is None


@given(
    source=st.lists(st.integers(0, 3), max_size=30),
    answer=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    before=st.lists(st.integers(0, 3), max_size=30),
    budget=st.integers(0, 8),
)
def test_it_is_prompt_lookup_over_both(
    source: list[int], answer: list[int], before: list[int], budget: int
) -> None:
    drafter, other = SourceLookup(), PromptLookup()
    drafter.begin([1], DraftSettings(source=before))
    drafter.begin(answer, DraftSettings(source=source))
    other.begin(source + answer, DraftSettings())
    found, expected = drafter.propose(budget), other.propose(budget)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert found.tree.tokens.tolist() == expected.tree.tokens.tolist()
        assert list(found.grades) == list(expected.grades)
