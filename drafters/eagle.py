"""A head that was trained on the target's hidden states grows a tree of what it will say.

The head: quickdraft.export.heads.eagle. The tree: Li et al., EAGLE-2 (arXiv 2406.16858): level by
level from the likeliest nodes of the last one, and of all nodes the likeliest are proposed. The
head's keys and values of what was decided are always those of the target's hidden states; those of
what was only drafted are never kept. Trees are chosen, not drawn: of sampled answers, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from quickdraft.drafters.levels import GrowingTree
from quickdraft.drafters.options import checked
from quickdraft.drafters.tree import Tree
from quickdraft.errors import OptionError

Floats = NDArray[np.float32]
States = Mapping[int, Floats]

CHUNK = 256
"""Most rows read in one step."""
LEAST = 0.02
"""A path that is less likely is not worth a look."""
GRADES = (0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.78, 0.86, 0.93, 0.97)
"""By the probability that the head gives a node (see quickdraft.drafters.levels)."""


@dataclass(frozen=True)
class EagleOptions:
    """part: name of the head in the bundle. depth: of the deepest node. width: most children of a
    node, and most nodes of a level that are followed further. stop_below: what follows a path is
    not asked where the path is less likely than this."""

    LIMITS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "depth": (1, 16),
        "width": (1, 8),
        "stop_below": (0.0, 1.0),
    }
    part: str = "eagle"
    depth: int = 5
    width: int = 3
    stop_below: float = 0.25


def open_eagle(context: DrafterContext, options: Mapping[str, Any]) -> DrafterSource:
    """Load the head. Every conversation has a cache of its own.

    Raises:
        OptionError: an option is unknown or has a bad value, or heads cannot be loaded.
        InputError: the bundle has no such head, or its target puts out no hidden states for it.
    """
    chosen = checked(EagleOptions, "eagle", options)
    if context.open_head is None:
        raise OptionError("drafter eagle is a part of its model's bundle, and there is none here")
    head = context.open_head(chosen.part)
    layers = tuple(head.details.get("hidden_states", ()))
    if head.details.get("kind") != "eagle" or not layers:
        raise OptionError(
            f"part of drafter eagle is {chosen.part!r}, which is no head of this kind; name one"
        )
    caches: WeakSet[Any] = WeakSet()

    def new() -> Eagle:
        drafter = Eagle(head, layers, chosen)
        caches.add(drafter.cache)
        return drafter

    return DrafterSource(
        "eagle",
        GRADES,
        new,
        hidden=layers,
        costly=True,
        nbytes=lambda: sum(cache.nbytes for cache in list(caches)),
    )


class Eagle:
    """The drafter of one conversation. A head that fails raises BackendError from `propose`.

    Row t of the head reads token t + 1 and the target's hidden states at token t, so it says what
    token t + 2 may be. Rows whose hidden states nobody told are left out: it drafts without them.
    """

    def __init__(self, head: HeadModel, layers: tuple[int, ...], options: EagleOptions) -> None:
        self.cache: Any = head.new_cache()
        self._head = head
        self._layers = layers
        self._options = options
        self._told = head.features * len(layers) // (len(layers) + 1)  # width of what is told
        self._tokens: list[int] = []
        self._read: list[int] = []  # numbers of the rows in the cache
        self._waiting: list[tuple[int, Floats]] = []  # rows to read: number, hidden states
        self._root: HeadOutput | None = None  # what the head said after the last row

    def begin(self, tokens: Sequence[int], settings: DraftSettings) -> None:
        """Follow the conversation; rows are read when the head is first asked."""
        del settings
        shared = common_prefix(self._tokens, tokens)
        self._tokens = list(tokens)
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
        start = len(self._tokens) - 1
        self._tokens += observation.tokens
        self._keep(start, self._joined(observation.hidden_states))

    def propose(self, budget: int) -> Draft | None:
        """A tree of likely paths; None where the head is not sure of anything, does not know the
        last hidden states, or the conversation is too long for it.

        Raises:
            BackendError: the head failed.
        """
        room = self._head.context_length - len(self._tokens)
        budget = min(budget, room)
        if budget < 1 or not self._catch_up():
            return None
        draft = self._grow(budget)
        return draft if len(draft.tree) > 1 else None

    def _forget(self, kept: int) -> None:
        """Keep that many rows of the cache."""
        if kept < len(self._read):
            self.cache.truncate(kept)
            del self._read[kept:]
            self._root = None

    def _joined(self, states: States) -> Floats:
        """float32 [rows, width], a copy."""
        return np.concatenate([states[layer] for layer in self._layers], axis=1)

    def _keep(self, start: int, rows: Floats) -> None:
        """Rows that are known are not kept again."""
        known = self._waiting[-1][0] if self._waiting else (self._read or [-1])[-1]
        self._waiting += [(start + i, row) for i, row in enumerate(rows) if start + i > known]

    def _catch_up(self) -> bool:
        """Read what is new; whether the head now knows what follows the last token."""
        ready = [each for each in self._waiting if each[0] < len(self._tokens) - 1]
        for at in range(0, len(ready), CHUNK):
            chunk = ready[at : at + CHUNK]
            features = np.zeros((len(chunk), self._head.features), np.float32)
            features[:, : self._told] = [states for _, states in chunk]
            tree = Tree.chain([self._tokens[row + 1] for row, _ in chunk])
            output = self._head.step(tree, self.cache, features, [len(chunk) - 1])
            self.cache.commit(range(len(chunk)))
            self._read += [row for row, _ in chunk]
            ids, sure = output.ids.copy(), output.log_probs.copy()
            self._root = HeadOutput(ids, sure, output.states[-1:].copy())
        del self._waiting[: len(ready)]
        return self._root is not None and self._read[-1] == len(self._tokens) - 2

    def _grow(self, budget: int) -> Draft:
        """The `budget` likeliest paths of those that grow from the likeliest nodes of the last
        level, in one step a level."""
        options, said = self._options, self._root
        assert said is not None  # `_catch_up` saw to it  # noqa: S101
        tree = GrowingTree(self._tokens[-1])
        level, states = [0], {0: said.states[0]}
        depth = min(options.depth, budget)
        for below in range(depth - 1, -1, -1):
            start = len(tree.tokens)
            sure = np.exp(np.minimum(said.log_probs[:, : options.width], 0.0)).tolist()
            for node, ids, probabilities in zip(level, said.ids.tolist(), sure, strict=True):
                tree.add(node, zip(ids, probabilities, strict=False), LEAST)
            level = tree.best(start, options.width, budget, options.stop_below)
            if not level or not below:
                break
            said = self._ask(tree, level, states)
        return tree.draft(budget)

    def _ask(
        self, tree: GrowingTree, level: Sequence[int], states: dict[int, Floats]
    ) -> HeadOutput:
        """What follows the nodes of a level. states: of all nodes that were asked before; those of
        this level are added. Only the paths that lead to them are run."""
        kept, staged = tree.subtree(level)
        features = np.zeros((len(kept), self._head.features), np.float32)
        features[:, self._told :] = [states[tree.parent[node]] for node in kept]
        rows = [kept.index(node) for node in level]
        said = self._head.step(staged, self.cache, features, rows)
        for node, row in zip(level, rows, strict=True):
            states[node] = said.states[row].copy()
        return said
