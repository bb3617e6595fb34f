"""ADED: an adaptive table of trigrams that drafts its likeliest paths.

Liu et al. (arXiv 2407.12021). What follows the last two tokens, with weights that move with what is
said. Ours: the table starts empty, forgets, and keeps to a fixed number of pairs; it explores what
the target nearly said, beside what it said; and a best-first search by the product of weights
stands for the Monte-Carlo tree search, at the cost of microseconds.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, ClassVar

from quickdraft.drafters.base import (
    Draft,
    DrafterContext,
    DrafterSource,
    DraftSettings,
    Observation,
)
from quickdraft.drafters.best_first import Context, Successor, grow
from quickdraft.drafters.conversation import common_prefix
from quickdraft.drafters.options import checked

WIDTH = 4
"""Successors kept per pair of tokens."""
_BYTES_PER_PAIR = 700
_WEIGHT = itemgetter(1)
_WEIGHTS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9)

Row = tuple[Successor, ...]


@dataclass(frozen=True)
class TrigramOptions:
    """pairs: pairs of tokens remembered, the latest ones. first: weight of what follows a pair seen
    once. rate: how far weights move towards what is said. exploration: added to the weight of what
    the target found second best; of the third best half of it, and so on. max_nodes: largest
    draft. floor: least product of weights of a path."""

    LIMITS: ClassVar[Mapping[str, tuple[float, float]]] = {
        "pairs": (1, 1 << 20),
        "first": (0.0, 1.0),
        "rate": (0.0, 1.0),
        "exploration": (0.0, 1.0),
        "max_nodes": (1, 64),
        "floor": (0.0, 1.0),
    }
    pairs: int = 1 << 14
    first: float = 0.6
    rate: float = 0.4
    exploration: float = 0.1
    max_nodes: int = 8
    floor: float = 0.05


GRADES = (0.02, 0.04, 0.05, 0.17, 0.27, 0.65, 0.85, 0.85, 0.85)
"""By the weight of a successor (`_WEIGHTS`)."""


def open_trigram(context: DrafterContext, options: Mapping[str, Any]) -> DrafterSource:
    """Open the drafter; all conversations share one table.

    Raises:
        OptionError: an option is unknown or has a bad value.
    """
    chosen = checked(TrigramOptions, "trigram", options)
    table = TrigramTable(chosen)
    return DrafterSource(
        "trigram",
        GRADES,
        lambda: Trigram(table, chosen),
        top=WIDTH,
        nbytes=lambda: len(table) * _BYTES_PER_PAIR,
    )


class TrigramTable:
    """What follows pairs of tokens. The weights of a pair are estimates: together at most 1."""

    def __init__(self, options: TrigramOptions) -> None:
        self._options = options
        # Rows are replaced, never changed: a reader in another thread sees the old or the new one.
        self._rows: dict[Context, Row] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def successors(self, pair: Context) -> Row:
        """Token, weight and grade of what may follow, likeliest first."""
        return self._rows.get(pair, ())

    def learn(self, pair: tuple[int, int], token: int, near: Sequence[int]) -> None:
        """Move the weights of a pair towards the token that followed it, and a little towards
        those the target found likely, best first."""
        options = self._options
        with self._lock:
            row = self._rows.pop(pair, None)
            if row is None:
                weights = {token: options.first}
                if len(self._rows) >= options.pairs:
                    del self._rows[next(iter(self._rows))]  # the one not seen for longest
            else:
                keep = 1.0 - options.rate
                weights = {successor[0]: successor[1] * keep for successor in row}
                weights[token] = weights.get(token, 0.0) + options.rate
            extra = options.exploration
            for other in near:
                if other != token:
                    weights[other] = weights.get(other, 0.0) + extra
                    extra /= 2
            best = sorted(weights.items(), key=_WEIGHT, reverse=True)[:WIDTH]
            total = sum(weights.values())
            scale = 1.0 / total if total > 1.0 else 1.0
            self._rows[pair] = tuple(
                [(t, w * scale, bisect_right(_WEIGHTS, w * scale)) for t, w in best]
            )


class Trigram:
    """The drafter of one conversation."""

    def __init__(self, table: TrigramTable, options: TrigramOptions) -> None:
        self._table = table
        self._options = options
        self._tokens: list[int] = []

    def begin(self, tokens: Sequence[int], settings: DraftSettings) -> None:
        """Learn what is new in the conversation."""
        shared = common_prefix(self._tokens, tokens)
        self._tokens = list(tokens)
        for i in range(max(shared, 2), len(tokens)):
            self._table.learn((tokens[i - 2], tokens[i - 1]), tokens[i], ())

    def propose(self, budget: int) -> Draft | None:
        """The likeliest paths from the last two tokens."""
        if budget < 1 or len(self._tokens) < 2:
            return None
        budget = min(budget, self._options.max_nodes)
        return grow(tuple(self._tokens[-2:]), self._table.successors, budget, self._options.floor)

    def observe(self, observation: Observation) -> None:
        """Learn what was said, and what the target nearly said instead."""
        tokens, near = self._tokens, self._near(observation)
        for i, token in enumerate(observation.tokens):
            if len(tokens) > 1:
                self._table.learn((tokens[-2], tokens[-1]), token, near[i])
            tokens.append(token)

    def _near(self, observation: Observation) -> list[list[int]]:
        if observation.top is None or not self._options.exploration:
            return [[]] * len(observation.tokens)
        near: list[list[int]] = observation.top[list(observation.path), :WIDTH].tolist()
        return near
