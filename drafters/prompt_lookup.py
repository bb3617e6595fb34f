"""Prompt lookup: what followed the last time these words were said?

Saxena, "Prompt Lookup Decoding" (2023). The last tokens are looked up in the conversation and what
followed them there is proposed. Ours: a hash index kept up to date instead of a scan (a step costs
the same in a long conversation), taken back where the conversation is; the longest match among the
latest ones wins, since its length says best whether it goes on; a second continuation is proposed
as a branch; and a repetition that overlaps its own end is read round.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from quickdraft.drafters.base import (
    Draft,
    DrafterContext,
    DrafterSource,
    DraftSettings,
    Observation,
)
from quickdraft.drafters.conversation import common_prefix
from quickdraft.drafters.options import checked
from quickdraft.drafters.tree import Tree

SIZES = (8, 4, 2, 1)
"""Sizes of the n-grams that are indexed. Longer and intermediate matches are found by comparing."""
LONGEST = 32
"""Tokens compared at most: a longer match says no more."""
_STEPS = (1, 2, 3, 4, 6, 9, 16)
_BRANCH_STEPS = (1, 2, 4)

Ngram = tuple[int, ...]


@dataclass(frozen=True)
class PromptLookupOptions:
    """min_ngram, max_ngram: fewest and most tokens that are matched. max_tokens: longest draft.
    scan: occurrences of an n-gram that are compared, latest first. branch: longest second
    continuation, 0 for none."""

    LIMITS: ClassVar[Mapping[str, tuple[int, int]]] = {
        "min_ngram": (1, 8),
        "max_ngram": (1, LONGEST),
        "max_tokens": (1, 64),
        "scan": (1, 64),
        "branch": (0, 32),
    }
    min_ngram: int = 2
    max_ngram: int = LONGEST
    max_tokens: int = 32
    scan: int = 8
    branch: int = 4


def open_prompt_lookup(context: DrafterContext, options: Mapping[str, Any]) -> DrafterSource:
    """Open the drafter; its conversations share nothing.

    Raises:
        OptionError: an option is unknown or has a bad value.
    """
    chosen = checked(PromptLookupOptions, "prompt_lookup", options)
    return DrafterSource("prompt_lookup", GRADES, lambda: PromptLookup(chosen))


GRADES = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.1, 0.15, 0.2)
"""By tokens matched before the node (`_STEPS`); then, by the same, of a second continuation."""


def _grade(matched: int) -> int:
    return bisect_right(_STEPS, matched) - 1


def _branch_grade(matched: int) -> int:
    return len(_STEPS) + bisect_right(_BRANCH_STEPS, matched) - 1


class PromptLookup:
    """The drafter of one conversation: a few entries per token of it."""

    def __init__(self, options: PromptLookupOptions | None = None) -> None:
        self._options = options or PromptLookupOptions()
        self._tokens: list[int] = []
        # Per size: where the latest occurrence of an n-gram ends, and, by end, the one before it.
        self._latest: list[dict[Ngram, int]] = [{} for _ in SIZES]
        self._earlier: list[list[int]] = [[] for _ in SIZES]
        self._settings = DraftSettings()

    def begin(self, tokens: Sequence[int], settings: DraftSettings) -> None:
        """Follow the conversation: forget what is no longer in it, index what is new."""
        self._settings = settings
        shared = common_prefix(self._tokens, tokens)
        self._truncate(shared)
        self._extend(tokens[shared:])

    def observe(self, observation: Observation) -> None:
        """Index the new tokens."""
        self._extend(observation.tokens)

    def _extend(self, new: Sequence[int]) -> None:
        tokens = self._tokens
        levels = list(zip(SIZES, self._latest, self._earlier, strict=True))
        for token in new:
            # An n-gram is indexed once it has a continuation, so the last one never finds itself.
            end = len(tokens)
            for size, latest, earlier in levels:
                if end < size:
                    earlier.append(0)
                    continue
                key = tuple(tokens[end - size :])
                earlier.append(latest.get(key, 0))
                latest[key] = end
            tokens.append(token)

    def _truncate(self, length: int) -> None:
        tokens = self._tokens
        while len(tokens) > length:
            tokens.pop()
            end = len(tokens)
            for size, latest, earlier in zip(SIZES, self._latest, self._earlier, strict=True):
                before = earlier.pop()
                if end < size:
                    continue
                key = tuple(tokens[end - size :])
                if before:
                    latest[key] = before
                else:
                    del latest[key]

    def propose(self, budget: int) -> Draft | None:
        """What followed the best match as a chain, and what else followed as a second one."""
        chosen = self._options
        most = self._settings.lookup_tokens
        budget = min(budget, chosen.max_tokens if most is None else most)
        found = self._continuations() if budget > 0 else []
        if not found:
            return None
        start, matched = found[0]
        beside = min(chosen.branch, budget // 4) if len(found) > 1 else 0
        nodes = self._read(start, budget - beside)
        grades = [0, *(_grade(matched + depth) for depth in range(len(nodes)))]
        if not beside:
            return Draft(Tree.chain([self._tokens[-1], *nodes]), grades)
        start, matched = found[1]
        branch = self._read(start, beside)
        parents = [*range(-1, len(nodes)), 0, *range(len(nodes) + 1, len(nodes) + beside)]
        grades.append(_branch_grade(matched))
        grades += [_grade(matched + depth) for depth in range(1, beside)]
        tokens = np.array([self._tokens[-1], *nodes, *branch], np.int64)
        return Draft(Tree(tokens, np.array(parents, np.int64)), grades)

    def _continuations(self) -> list[tuple[int, int]]:
        """Where to read on, and how many tokens match before: the best two with different tokens.

        Of the latest `scan` occurrences of the longest n-gram known, the longest match is best; of
        equals the latest. Shorter n-grams are asked only for what is still missing.
        """
        tokens = self._tokens
        length = len(tokens)
        most = min(self._settings.max_ngram or LONGEST, self._options.max_ngram, length)
        least = min(self._options.min_ngram, most)
        found: list[tuple[int, int]] = []
        said: set[int] = set()
        for size, latest, earlier in zip(SIZES, self._latest, self._earlier, strict=True):
            if size > most or len(found) > 1:
                continue
            if size < least and (found or size * 2 <= least):
                break
            matches = []
            end = latest.get(tuple(tokens[length - size :]), 0)
            for _ in range(self._options.scan):
                if not end:
                    break
                if tokens[end] not in said:
                    matched = self._matched(end, size, most)
                    if matched >= least:
                        matches.append((matched, end))
                end = earlier[end]
            for matched, end in sorted(matches, reverse=True):
                if tokens[end] not in said and len(found) < 2:
                    said.add(tokens[end])
                    found.append((end, matched))
        return found

    def _matched(self, end: int, matched: int, most: int) -> int:
        """How many tokens before `end` are the last ones of the conversation, at most `most`."""
        tokens = self._tokens
        last = len(tokens)
        most = min(most, end)
        while matched < most and tokens[end - matched - 1] == tokens[last - matched - 1]:
            matched += 1
        return matched

    def _read(self, start: int, count: int) -> list[int]:
        nodes = self._tokens[start : start + count]
        # The match overlaps the end: the period goes on.
        period = len(nodes)
        return nodes + [nodes[i % period] for i in range(count - period)]
