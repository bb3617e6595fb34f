"""A few layers of an encoder-decoder model guess what all of them will say, over its memory.

The model: quickdraft.export.heads.shallow. It drafts as any small model does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters import small_model
from quickdraft.drafters.base import (
    Draft,
    DrafterContext,
    DrafterSource,
    DraftSettings,
    HeadModel,
    Observation,
)
from quickdraft.drafters.options import checked
from quickdraft.drafters.tree import Tree
from quickdraft.errors import OptionError


@dataclass(frozen=True)
class ShallowOptions:
    """part: name of the draft in the bundle. The others as in SmallModelOptions."""

    LIMITS: ClassVar[Mapping[str, tuple[Any, ...]]] = small_model.SmallModelOptions.LIMITS
    part: str = "shallow"
    method: str = "auto"
    depth: int = 8
    width: int = 2
    nodes: int = 6
    stop_below: float = 0.4


def open_shallow(context: DrafterContext, options: Mapping[str, Any]) -> DrafterSource:
    """Load the draft. Every conversation has a cache of its own.

    Raises:
        OptionError: an option is unknown or has a bad value, or parts cannot be loaded.
        InputError: the bundle has no such part.
    """
    chosen = checked(ShallowOptions, "shallow", options)
    if context.open_head is None:
        raise OptionError("drafter shallow is a part of its model's bundle, and there is none here")
    model = context.open_head(chosen.part)
    if model.details.get("kind") != "shallow" or not model.reads_memory:
        raise OptionError(
            f"part of drafter shallow is {chosen.part!r}, which is no draft of this kind; name one"
        )
    values = dataclasses.asdict(chosen)
    settings = small_model.SmallModelOptions(model=values.pop("part"), **values)
    drafters: WeakSet[Shallow] = WeakSet()

    def new() -> Shallow:
        drafter = Shallow(model, settings)
        drafters.add(drafter)
        return drafter

    return DrafterSource(
        "shallow",
        small_model.GRADES,
        new,
        costly=True,
        nbytes=lambda: sum(drafter.nbytes for drafter in list(drafters)),
    )


class Shallow:
    """The drafter of one conversation: a small model over the memory of the source that is asked
    about. A model that fails raises BackendError from `propose`."""

    def __init__(self, model: HeadModel, options: small_model.SmallModelOptions) -> None:
        self._model = model
        self._options = options
        self._memory: Any = None
        self._inner: small_model.SmallModel | None = None

    def begin(self, tokens: Sequence[int], settings: DraftSettings) -> None:
        """Follow the conversation; over another source, from its beginning."""
        if settings.memory is None:
            self._memory = self._inner = None
            return
        if self._inner is None or settings.memory is not self._memory:
            over = _OverMemory(self._model, settings.memory)
            self._inner = small_model.SmallModel(over, self._options)
            self._memory = settings.memory
        self._inner.begin(tokens, settings)

    def observe(self, observation: Observation) -> None:
        """Follow the conversation."""
        if self._inner is not None:
            self._inner.observe(observation)

    def propose(self, budget: int) -> Draft | None:
        """See SmallModel.propose; None before there is a source."""
        return None if self._inner is None else self._inner.propose(budget)

    @property
    def nbytes(self) -> int:
        """Bytes of its cache."""
        return 0 if self._inner is None else int(self._inner.reader.cache.nbytes)


class _OverMemory:
    """A DraftModel whose caches are over one memory."""

    def __init__(self, model: HeadModel, memory: Any) -> None:
        self._model = model
        self._memory = memory
        self.vocab_size = model.vocab_size
        self.context_length = model.context_length

    def new_cache(self) -> Any:
        """See DraftModel."""
        return self._model.new_cache_over(self._memory)

    def logits(self, tree: Tree, cache: Any, rows: Sequence[int]) -> NDArray[np.float32]:
        """See DraftModel."""
        return self._model.logits(tree, cache, rows)
