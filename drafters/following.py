"""Drafters whose head reads the target's hidden states along with the conversation.

What eagle, falcon, clover and chimera have in common: row t of the head reads token t + 1 and the
target's hidden states at token t, so that it says what token t + 2 may be. The head's keys and
values of what was decided are always those of the target's states; those of what was only drafted
are never kept. Trees grow level by level from the likeliest nodes of the last one (Li et al.,
EAGLE-2, arXiv 2406.16858), and of all nodes the likeliest are proposed. They are chosen, not drawn:
of sampled answers, too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.base import (
    Draft,
    DrafterContext,
    DrafterSource,
    DraftSettings,
    HeadModel,
    HeadOutput,
    Observation,
)
from quickdraft.drafters.conversation import common_prefix
from quickdraft.drafters.levels import GRADES, LEAST, GrowingTree
from quickdraft.drafters.options import checked
from quickdraft.drafters.parts import open_own
from quickdraft.drafters.tree import Tree

Floats = NDArray[np.float32]
States = Mapping[int, Floats]

CHUNK = 256
"""Most rows read in one step."""


@dataclass(frozen=True)
class FollowOptions:
    """part: name of the head in the bundle, or what the names of its several parts begin with.
    depth: of the deepest node. width: most children of a node, and most nodes of a level that are
    followed further. stop_below: what follows a path is not asked where the path is less likely
    than this."""

    LIMITS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "depth": (1, 16),
        "width": (1, 8),
        "stop_below": (0.0, 1.0),
    }
    part: str
    depth: int
    width: int = 3
    stop_below: float = 0.25


class Following(ABC):
    """The drafter of one conversation. A head that fails raises BackendError from `propose`.

    Rows whose hidden states nobody told are left out: it drafts without them. tokens: the
    conversation. root: what the head said after the last row, None where that is not known.
    """

    def __init__(self, head: HeadModel, options: FollowOptions) -> None:
        self.cache: Any = head.new_cache()
        self.tokens: list[int] = []
        self.root: HeadOutput | None = None
        self._head = head
        self._layers = layers_of(head)
        self._options = options
        self._read: list[int] = []  # numbers of the rows in the cache
        self._waiting: list[tuple[int, Floats]] = []  # rows to read: number, hidden states

    def begin(self, tokens: Sequence[int], settings: DraftSettings) -> None:
        """Follow the conversation; rows are read when the head is first asked."""
        del settings
        shared = common_prefix(self.tokens, tokens)
        self.tokens = list(tokens)
        # A row in the cache has read the token after it, one that waits has not.
        self._waiting = [(row, states) for row, states in self._waiting if row < shared]
        self._forget(sum(row + 1 < shared for row in self._read))

    def read(self, start: int, states: States) -> None:
        """Keep the hidden states of tokens, until the head is asked. Where a row before known ones
        was left out, these are read anew behind it."""
        rows = self._joined(states)
        known = [*self._read, *(row for row, _ in self._waiting)]
        told = range(start, start + len(rows))
        gap = min(set(told) - set(known), default=None)
        if gap is not None and known and gap < known[-1]:
            self._waiting = [(row, kept) for row, kept in self._waiting if row < gap]
            self._forget(sum(row < gap for row in self._read))
        self._keep(start, rows)

    def observe(self, observation: Observation) -> None:
        """Keep the hidden states that chose these tokens."""
        start = len(self.tokens) - 1
        self.tokens += observation.tokens
        self._keep(start, self._joined(observation.hidden_states))

    def propose(self, budget: int) -> Draft | None:
        """A tree of likely paths; None where the head is not sure of anything, does not know the
        last hidden states, or the conversation is too long for it.

        Raises:
            BackendError: the head failed.
        """
        room = self._head.context_length - len(self.tokens)
        budget = min(budget, room)
        if budget < 1 or not self._catch_up():
            return None
        draft = self.grow(budget)
        return draft if len(draft.tree) > 1 else None

    def grow(self, budget: int) -> Draft:
        """The `budget` likeliest paths of those that grow from the likeliest nodes of the last
        level, in one step a level."""
        options, tree = self._options, GrowingTree(self.tokens[-1])
        level = [0]
        said = self.first(tree)
        depth = min(options.depth, budget)
        for below in range(depth - 1, -1, -1):
            start = len(tree.tokens)
            sure = likelihoods(said, options.width)
            for node, ids, probabilities in zip(level, said.ids.tolist(), sure, strict=True):
                tree.add(node, zip(ids, probabilities, strict=False), LEAST)
            level = tree.best(start, options.width, budget, options.stop_below)
            if not level or not below:
                break
            said = self.ask(tree, level)
        return tree.draft(budget)

    def first(self, tree: GrowingTree) -> HeadOutput:
        """What follows the root of a new tree."""
        raise NotImplementedError

    def ask(self, tree: GrowingTree, level: Sequence[int]) -> HeadOutput:
        """What follows the nodes of a level."""
        raise NotImplementedError

    @abstractmethod
    def features(self, rows: Sequence[tuple[int, Floats]]) -> Floats:
        """float32 [rows, features of the head]: what rows of the conversation come with. rows:
        number and the hidden states of the target, one stream after another."""

    def asked(self, count: int) -> Sequence[int]:
        """Which logits are wanted of the last of `count` rows."""
        return [count - 1]

    @property
    def states(self) -> Floats:
        """float32 [width]: the head's states of the last row."""
        assert self.root is not None  # `propose` saw to it  # noqa: S101
        last: Floats = self.root.states[-1]
        return last

    def _forget(self, kept: int) -> None:
        """Keep that many rows of the cache."""
        if kept < len(self._read):
            self.cache.truncate(kept)
            del self._read[kept:]
            self.root = None

    def _joined(self, states: States) -> Floats:
        """float32 [rows, width], a copy."""
        return np.concatenate([states[layer] for layer in self._layers], axis=1)

    def _keep(self, start: int, rows: Floats) -> None:
        """Rows that are known are not kept again."""
        known = self._waiting[-1][0] if self._waiting else (self._read or [-1])[-1]
        self._waiting += [(start + i, row) for i, row in enumerate(rows) if start + i > known]

    def _catch_up(self) -> bool:
        """Read what is new; whether the head now knows what follows the last token."""
        ready = [each for each in self._waiting if each[0] < len(self.tokens) - 1]
        for at in range(0, len(ready), CHUNK):
            chunk = ready[at : at + CHUNK]
            tree = Tree.chain([self.tokens[row + 1] for row, _ in chunk])
            features = self.features(chunk)
            output = self._head.step(tree, self.cache, features, self.asked(len(chunk)))
            self.cache.commit(range(len(chunk)))
            self._read += [row for row, _ in chunk]
            ids, sure = output.ids.copy(), output.log_probs.copy()
            self.root = HeadOutput(ids, sure, output.states[-1:].copy())
        del self._waiting[: len(ready)]
        return self.root is not None and self._read[-1] == len(self.tokens) - 2


def likelihoods(said: HeadOutput, width: int) -> list[list[float]]:
    """The probabilities of the `width` likeliest tokens of every row."""
    found: list[list[float]] = np.exp(np.minimum(said.log_probs[:, :width], 0.0)).tolist()
    return found


def layers_of(head: HeadModel) -> tuple[int, ...]:
    """The hidden states that a head reads, by number of layers passed."""
    return tuple(head.details["hidden_states"])


def open_following(
    kind: tuple[str, type[FollowOptions], Callable[..., Following]],
    context: DrafterContext,
    options: Mapping[str, Any],
    suffixes: Sequence[str] = ("",),
) -> DrafterSource:
    """Load the parts of a drafter, whose conversations share them and have a cache each.

    kind: its name, its options, and what makes the drafter of a conversation from its parts and
    these. suffixes: what the names of its parts end in; the first one is the head that follows.

    Raises:
        OptionError: an option is unknown or has a bad value, or heads cannot be loaded.
        InputError: the bundle lacks a part, or its target puts out no hidden states for it.
    """
    name, kind_of_options, make = kind
    chosen = checked(kind_of_options, name, options)
    parts = [open_own(context, name, chosen.part, suffix) for suffix in suffixes]
    caches: WeakSet[Any] = WeakSet()

    def new() -> Following:
        drafter = make(*parts, chosen)
        caches.add(drafter.cache)
        return drafter

    return DrafterSource(
        name,
        GRADES,
        new,
        hidden=layers_of(parts[0]),
        costly=True,
        nbytes=lambda: sum(cache.nbytes for cache in list(caches)),
    )
