"""A draft that stops after few of its layers where these are sure guesses what the target will say.

Kavehzadeh et al., S2D (arXiv 2407.01955); the draft: quickdraft.export.heads.nested. It drafts as
any small model does. What a later exit has not read, because an earlier one was sure, waits until
it is asked, and is then read in one step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters import small_model
from quickdraft.drafters.base import DrafterContext, DrafterSource, HeadModel
from quickdraft.drafters.options import checked
from quickdraft.drafters.parts import open_own
from quickdraft.drafters.reader import CHUNK
from quickdraft.drafters.tree import Tree

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class NestedOptions:
    """part: what the names of the draft's parts in the bundle begin with. sure: probability of the
    likeliest token above which no later exit is asked. The others as in SmallModelOptions."""

    LIMITS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **small_model.SmallModelOptions.LIMITS,
        "sure": (0.0, 1.0),
    }
    part: str = "nested"
    sure: float = 0.5
    method: str = "auto"
    depth: int = 8
    width: int = 3
    nodes: int = 6
    stop_below: float = 0.2


def open_nested(context: DrafterContext, options: Mapping[str, Any]) -> DrafterSource:
    """Load the draft. Every conversation has caches of its own.

    Raises:
        OptionError: an option is unknown or has a bad value, or parts cannot be loaded.
        InputError: the bundle has no such parts.
    """
    chosen = checked(NestedOptions, "nested", options)
    heads = [open_own(context, "nested", chosen.part, "-1")]
    count = int(heads[0].details["exits"])
    heads += [open_own(context, "nested", chosen.part, f"-{k}") for k in range(2, count + 1)]
    values = dataclasses.asdict(chosen)
    model = NestedModel(heads, values.pop("sure"))
    settings = small_model.SmallModelOptions(model=values.pop("part"), **values)
    return small_model.drafts_of("nested", model, settings)


class NestedCache:
    """What each exit has read of a conversation, and what waits to be read.

    caches: by exit. waiting: by exit, float32 [rows, width], the streams before it of rows that it
    has not read and the exit before it has. staged: the same of the last step, after every exit
    that took part, for all rows.
    """

    def __init__(self, heads: Sequence[HeadModel]) -> None:
        self.caches = [head.new_cache() for head in heads]
        self.waiting: list[list[Floats]] = [[] for _ in heads]
        self.staged: list[Floats] = []

    @property
    def length(self) -> int:
        """Committed rows."""
        return int(self.caches[0].length)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        rows = sum(row.nbytes for waiting in self.waiting for row in waiting)
        return rows + sum(int(cache.nbytes) for cache in self.caches)

    def commit(self, path: Sequence[int]) -> None:
        """Keep rows of the last step."""
        for cache in self.caches[: len(self.staged)]:
            cache.commit(path)
        if len(self.staged) < len(self.caches):
            self.waiting[len(self.staged)] += [self.staged[-1][row] for row in path]
        self.staged = []

    def truncate(self, length: int) -> None:
        """Forget all rows from this one on."""
        for cache, waiting in zip(self.caches, self.waiting, strict=True):
            kept = min(cache.length, length)
            del waiting[min(cache.length + len(waiting), length) - kept :]
            cache.truncate(kept)
        self.staged = []


class NestedModel:
    """The parts as one draft model (drafters.base.DraftModel). asked: logits that were wanted of
    every exit, since it was loaded."""

    def __init__(self, heads: Sequence[HeadModel], sure: float) -> None:
        self.vocab_size = heads[0].vocab_size
        self.context_length = heads[0].context_length
        self.asked = [0] * len(heads)
        self._heads = heads
        self._sure = sure

    def new_cache(self) -> NestedCache:
        """Empty caches."""
        return NestedCache(self._heads)

    def logits(self, tree: Tree, cache: NestedCache, rows: Sequence[int]) -> Floats:
        """float32 [len(rows), vocabulary of the target], of each row after the first exit that is
        sure, or the last one.

        Raises:
            ContextOverflow, BackendError: as steps of the parts.
        """
        found = np.zeros((len(rows), self.vocab_size), np.float32)
        left, streams = list(range(len(rows))), None
        cache.staged = []
        for number, head in enumerate(self._heads):
            self._catch_up(number, cache)
            asked = [rows[at] for at in left]
            said, states = head.whole(tree, cache.caches[number], streams, asked)
            found[left] = said
            self.asked[number] += len(asked)
            streams = states.copy()
            cache.staged.append(streams)
            left = [at for at in left if _likeliest(found[at]) <= self._sure]
            if not left:
                break
        return found

    def _catch_up(self, number: int, cache: NestedCache) -> None:
        """Let an exit read what waits for it, which then waits for the next one."""
        waiting, cache.waiting[number] = cache.waiting[number], []
        for at in range(0, len(waiting), CHUNK):
            streams = np.stack(waiting[at : at + CHUNK])
            tokens = Tree.chain([0] * len(streams))  # later parts read streams alone
            _, states = self._heads[number].whole(
                tokens, cache.caches[number], streams, [len(streams) - 1]
            )
            if number + 1 < len(self._heads):
                cache.waiting[number + 1] += list(states.copy())
            cache.caches[number].commit(range(len(streams)))


def _likeliest(logits: Floats) -> float:
    """The probability of the likeliest token."""
    return 1 / float(np.exp(logits - logits.max()).sum())
