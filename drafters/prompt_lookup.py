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
MAX_TOKENS = 64
SCANNED = 8
"""Occurrences of an n-gram that are looked at, the latest ones."""

Ngram = tuple[int, ...]


@dataclass(frozen=True)
class PromptLookupOptions:
    """min_ngram, max_ngram: fewest and most tokens that are matched. max_tokens: longest draft.
    branches: different continuations proposed. branch_tokens: longest one but the first."""

    LIMITS: ClassVar[Mapping[str, tuple[int, int]]] = {
        "min_ngram": (1, 16),
        "max_ngram": (1, LONGEST),
        "max_tokens": (1, MAX_TOKENS),
        "branches": (1, SCANNED),
        "branch_tokens": (1, 32),
    }
    min_ngram: int = 1
    max_ngram: int = LONGEST
    max_tokens: int = 32
    branches: int = 3
    branch_tokens: int = 4


def open_prompt_lookup(context: DrafterContext, options: Mapping[str, Any]) -> DrafterSource:
    """Open the drafter; its conversations share nothing.

    Raises:
        OptionError: an option is unknown or has a bad value.
    """
    chosen = checked(PromptLookupOptions, "prompt_lookup", options)
    return DrafterSource("prompt_lookup", GRADES, lambda: PromptLookup(chosen))


_MATCHED = (1, 2, 3, 4, 6, 9, 16)
"""Tokens that match before a node, where grades begin."""
SPLIT, ONCE, AGREED, INNER = range(4)
"""What is known of a node. It begins the best continuation, and the latest occurrences of the last
token were followed by different ones; there is one occurrence only; all were followed by this one.
Or it is further inside a continuation."""
GRADES = (
    *(0.18, 0.3, 0.6, 0.65, 0.8, 0.85, 0.9),
    *(0.28, 0.65, 0.7, 0.75, 0.85, 0.9, 0.95),
    *(0.5, 0.85, 0.85, 0.9, 0.9, 0.95, 0.98),
    *(0.5, 0.52, 0.62, 0.74, 0.8, 0.88, 0.97),
    *(0.13, 0.07),
)
"""By kind of node and by how many tokens match before it; then of a second best continuation, and
of any other."""
_BRANCH = 4 * len(_MATCHED) - 1


def _grade(kind: int, matched: int) -> int:
    return kind * len(_MATCHED) + bisect_right(_MATCHED, matched) - 1


_INNER_GRADES = [_grade(INNER, matched) for matched in range(1, 2 * LONGEST + MAX_TOKENS)]


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
        """What followed the best match as a chain, and what else followed as branches beside it."""
        most = self._settings.lookup_tokens
        budget = min(budget, MAX_TOKENS, self._options.max_tokens if most is None else most)
        found = self._continuations()[:budget] if budget > 0 else []
        if not found:
            return None
        length = 0
        if len(found) > 1:
            length = max(1, min(self._options.branch_tokens, budget // 2 // (len(found) - 1)))
        kind = self._agreement(found[0][0])
        tokens, parents, grades = [self._tokens[-1]], [-1], [0]
        for rank, (start, matched) in enumerate(found):
            count = length if rank else budget - length * (len(found) - 1)
            nodes = self._read(start, count)
            parents += [0, *range(len(tokens), len(tokens) + count - 1)]
            tokens += nodes
            grades.append(_BRANCH + min(rank, 2) if rank else _grade(kind, matched))
            grades += _INNER_GRADES[matched : matched + count - 1]
        tree = Tree(np.array(tokens, np.int64), np.array(parents, np.int64))
        return Draft(tree, grades)

    def _continuations(self) -> list[tuple[int, int]]:
        """Where to read on, and how many tokens match before it; best first, each place with a
        different token.

        Of the latest occurrences of the longest n-gram known, the longest match is best; of equals
        the latest. Shorter n-grams are asked for what is still missing.
        """
        tokens, length = self._tokens, len(self._tokens)
        most = min(self._settings.max_ngram or LONGEST, self._options.max_ngram, length)
        least = min(self._options.min_ngram, most)
        found: list[tuple[int, int]] = []
        said: set[int] = set()
        for size, latest, earlier in zip(SIZES, self._latest, self._earlier, strict=True):
            if size > most:
                continue
            matches = []
            end = latest.get(tuple(tokens[length - size :]), 0)
            for _ in range(SCANNED):
                if not end:
                    break
                if tokens[end] not in said:
                    matched = self._matched(end, size, most)
                    if matched >= least:
                        matches.append((matched, end))
                end = earlier[end]
            for matched, end in sorted(matches, reverse=True):
                if tokens[end] not in said:
                    said.add(tokens[end])
                    found.append((end, matched))
                    if len(found) == self._options.branches:
                        return found
            if size <= least:
                break
        return found

    def _agreement(self, start: int) -> int:
        """Whether the latest occurrences of the last token were followed by the one at `start`."""
        tokens, earlier = self._tokens, self._earlier[-1]
        end = self._latest[-1][(tokens[-1],)]
        before = earlier[end]
        if not before and tokens[end] == tokens[start]:
            return ONCE
        for _ in range(SCANNED):
            if not end:
                break
            if tokens[end] != tokens[start]:
                return SPLIT
            end = earlier[end]
        return AGREED

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
