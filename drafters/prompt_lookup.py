"""Prompt lookup: what followed the last time these words were said?

Saxena, "Prompt Lookup Decoding" (2023). The last n tokens are looked up in the conversation and
what followed them there is proposed. Ours: a hash index kept up to date instead of a scan (a step
costs the same in a long conversation), taken back where the conversation is, and read round where
a repetition overlaps its own end.
"""

from __future__ import annotations

from collections.abc import Sequence

from quickdraft.drafters.base import DraftSettings, Observation, Proposals
from quickdraft.drafters.tree import Tree

MIN_NGRAM = 2
"""One token in common is no ground for a draft, unless nothing longer may be looked up."""

Ngram = tuple[int, ...]


class PromptLookup:
    """A drafter without a model; memory is a few entries per token of the conversation."""

    name = "prompt_lookup"
    proposals: Proposals = "point_mass"

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._sizes: tuple[int, ...] = ()
        # Per n: where the latest occurrence of an n-gram ends, and, by end, the one before it.
        self._latest: list[dict[Ngram, int]] = []
        self._earlier: list[list[int]] = []
        self._configure(DraftSettings())

    def _configure(self, settings: DraftSettings) -> None:
        least = min(MIN_NGRAM, settings.max_ngram)
        sizes = tuple(range(settings.max_ngram, least - 1, -1))
        if sizes != self._sizes:
            self._tokens, self._sizes = [], sizes
            self._latest, self._earlier = [{} for _ in sizes], [[] for _ in sizes]

    def begin(self, tokens: Sequence[int], settings: DraftSettings) -> None:
        """Follow the conversation: forget what is no longer in it, index what is new."""
        self._configure(settings)
        shared = common_prefix(self._tokens, tokens)
        self._truncate(shared)
        self._extend(tokens[shared:])

    def observe(self, observation: Observation) -> None:
        """Index the new tokens."""
        self._extend(observation.tokens)

    def _extend(self, new: Sequence[int]) -> None:
        tokens, levels = self._tokens, list(zip(self._sizes, self._latest, self._earlier))  # noqa: B905
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
            for size, latest, earlier in zip(self._sizes, self._latest, self._earlier, strict=True):
                before = earlier.pop()
                if end < size:
                    continue
                key = tuple(tokens[end - size :])
                if before:
                    latest[key] = before
                else:
                    del latest[key]

    def propose(self, budget: int) -> Tree | None:
        """What followed the latest occurrence of the longest known n-gram, as a chain."""
        tokens = self._tokens
        length = len(tokens)
        if budget < 1:
            return None
        for size, latest in zip(self._sizes, self._latest, strict=True):
            start = latest.get(tuple(tokens[length - size :])) if length >= size else None
            if start is None:
                continue
            draft = tokens[start : start + budget]
            # The match overlaps the end: the period goes on.
            period = len(draft)
            draft += [draft[i % period] for i in range(budget - period)]
            return Tree.chain([tokens[-1], *draft])
        return None


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading tokens two conversations share."""
    shared = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        shared += 1
    return shared
