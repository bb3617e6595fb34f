"""Forced tokens: where a grammar or a template leaves one way to go on, the draft is free.

A grammar that masks the target's tokens, a JSON schema, a form to be filled in: each knows
stretches of text that must come. Verifying them costs a row each instead of a step each, and with
the mask in place every one is accepted. This drafter is made from Python, by whoever holds the
grammar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from quickdraft.drafters.base import Draft, Drafter, DrafterSource, DraftSettings, Observation
from quickdraft.drafters.tree import Tree

Forced = Callable[[Sequence[int]], Sequence[int]]
"""The tokens that must follow those of an answer so far; empty where there is a choice."""

FORCED, USUAL = range(2)
GRADES = (0.995, 0.9)
"""The grammar masks everything else; or it only describes what the target is asked to say."""


def forced_source(new: Callable[[], Forced], *, masked: bool = True) -> DrafterSource:
    """A drafter of what a grammar forces.

    new: makes the grammar's state for one conversation. masked: whether the same grammar masks the
    target's tokens, so that nothing else can be accepted.
    """
    grade = FORCED if masked else USUAL

    def new_drafter() -> Drafter:
        return ForcedDrafter(new(), grade)

    return DrafterSource("forced", GRADES, new_drafter)


class ForcedDrafter:
    """The drafter of one conversation."""

    def __init__(self, forced: Forced, grade: int) -> None:
        self._forced = forced
        self._grade = grade
        self._root = 0
        self._answer: list[int] = []

    def begin(self, tokens: Sequence[int], settings: DraftSettings) -> None:
        """Start an answer; grammars do not look at what was said before it."""
        self._root = tokens[-1]
        self._answer = []

    def propose(self, budget: int) -> Draft | None:
        """What must follow, as a chain."""
        nodes = list(self._forced(self._answer))[:budget] if budget > 0 else []
        if not nodes:
            return None
        tree = Tree.chain([self._root, *nodes])
        return Draft(tree, [self._grade] * len(tree))

    def observe(self, observation: Observation) -> None:
        """Follow the answer."""
        self._answer += observation.tokens
        self._root = self._answer[-1]
