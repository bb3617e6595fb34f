"""The drafter contract.

Rules every drafter keeps, checked by the contract tests:

* It only proposes. Whatever it proposes, the answer stays the target's: a bad drafter costs time.
* Its state follows what it is told, never anything else: the same calls give the same proposals.
* It proposes nothing rather than a guess without grounds, and never more than its budget.
* Siblings of a tree carry different tokens.

A new drafter is one file with a function `open_...(context, options) -> DrafterSource` and one line
in the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.distribution import Distribution
from quickdraft.drafters.tree import Tree


@dataclass(frozen=True)
class Drawn:
    """How children of a node came about: the first `count` of them were drawn from `law` without
    replacement, first drawn first. Any others were chosen, as all are of a node without a law.

    Whether a node is drawn, and whether a drawn one is kept, may depend on what was drawn before
    it and never on its own token or on what hangs below it, or the distribution of the answer
    would change. So drawn nodes are cut, if at all, by what was known before the first draw.
    """

    law: Distribution
    count: int


@dataclass(frozen=True)
class Draft:
    """A proposal.

    tree: its root is the last token known. grades: one per node, how sure the drafter is of it:
    an index into its source's `grades` (the root's means nothing); that of a drawn node depends on
    nothing drawn. laws: by node, how its children were drawn; none where they were chosen.
    """

    tree: Tree
    grades: Sequence[int]
    laws: Mapping[int, Drawn] = field(default_factory=dict)


Law = Callable[[NDArray[np.float32], Sequence[int]], Distribution]
"""What an answer makes of logits, float32 [vocabulary], after the tokens of a conversation:
temperature, filters, penalties. Does not change the logits."""


@dataclass(frozen=True)
class DraftSettings:
    """What is particular to one answer.

    law: how the answer draws its tokens; None if it is greedy. seed: for what a drafter draws.
    lookup_tokens, max_ngram: prompt_lookup_num_tokens and max_matching_ngram_size of the answer,
    None where it leaves them to the drafter. source: token ids that the encoder of the target read,
    empty where it has none or reads something else. memory: what the target attends to of it
    (kvcache.memory.Memory), None where it has no encoder.
    """

    law: Law | None = None
    seed: int = 0
    lookup_tokens: int | None = None
    max_ngram: int | None = None
    source: Sequence[int] = ()
    memory: Any = None


@dataclass(frozen=True)
class Observation:
    """What one step decided.

    tokens: the new tokens of the answer, in order. tree: what was verified; path: its accepted
    nodes, root first, as many as tokens: the row of node path[i] chose tokens[i]. top: int64
    [n, t], the target's most likely tokens after every node of the tree, best first; None where
    no source asked for them. hidden_states: float32 [len(tokens), hidden] by number of layers
    passed; row i is the one whose logits chose tokens[i].
    """

    tokens: Sequence[int]
    tree: Tree
    path: Sequence[int]
    top: NDArray[np.int64] | None = None
    hidden_states: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)


class Drafter(Protocol):
    """Proposes tokens for one conversation; not shared between conversations."""

    def begin(self, tokens: Sequence[int], settings: DraftSettings) -> None:
        """Start an answer after `tokens`, the whole conversation so far.

        What it shares with the tokens known before may be kept; the rest is forgotten.
        """

    def propose(self, budget: int) -> Draft | None:
        """At most `budget` nodes below the root, which is the last token known; or None."""

    def observe(self, observation: Observation) -> None:
        """Learn what the step decided."""


class DraftModel(Protocol):
    """A loaded model that drafts: what runtime's backends offer (see runtime.backends.base)."""

    @property
    def vocab_size(self) -> int:
        """Tokens it can read: ids below this, which mean to it what they mean to the target."""

    @property
    def context_length(self) -> int:
        """Most tokens it can hold."""

    def new_cache(self) -> Any:
        """An empty cache (kvcache.base.KvCache)."""

    def logits(self, tree: Tree, cache: Any, rows: Sequence[int]) -> NDArray[np.float32]:
        """float32 [len(rows), vocabulary of the target]: logits after these nodes of a tree over
        the committed cache; its keys and values are staged. Valid until the next step."""


class StateReader(Drafter, Protocol):
    """A drafter whose source names hidden states."""

    def read(self, start: int, states: Mapping[int, NDArray[np.float32]]) -> None:
        """Hidden states that the target had at tokens of the prompt, from number `start` on:
        float32 [rows, hidden] by number of layers passed. Called in order after `begin`; what was
        kept of an earlier answer, or is predicted, is left out. Once exact rows have taken the
        place of predicted ones, called again in the middle of an answer, from an earlier number on:
        these states, also of the answer so far, stand for all that was known from there on."""


class CacheReader(Drafter, Protocol):
    """A drafter whose source names a part of the bundle that it runs."""

    def adopt(self, tokens: Sequence[int], cache: Any) -> None:
        """Take a cache of that part that holds these first tokens of the conversation. Called after
        `begin`, before anything is proposed."""


class HeadOutput(NamedTuple):
    """What a head makes of m rows.

    ids: int64 [m, t], the target's tokens, likeliest first; log_probs: float32 [m, t], over the
    head's vocabulary. states: float32 [n, hidden] of all rows, where it offers several one beside
    another; empty where the head offers none.
    """

    ids: NDArray[np.int64]
    log_probs: NDArray[np.float32]
    states: NDArray[np.float32]


class HeadModel(DraftModel, Protocol):
    """A small trained network of the target's bundle (what runtime opens): it reads the target's
    hidden states or, where `features` is 0, tokens alone; then it is a DraftModel, too."""

    @property
    def details(self) -> Mapping[str, Any]:
        """What training says of it."""

    @property
    def features(self) -> int:
        """Width of the vectors that come with its tokens."""

    @property
    def reads_memory(self) -> bool:
        """Whether its caches have to be over a memory of the target."""

    def new_cache_over(self, memory: Any) -> Any:
        """An empty cache over a memory of the target."""

    def step(
        self, tree: Tree, cache: Any, features: NDArray[np.float32], rows: Sequence[int]
    ) -> HeadOutput:
        """One step over the committed cache; keys and values are staged. features: float32
        [n, features]; rows: the m nodes that are asked. Valid until the next step."""

    def whole(
        self, tree: Tree, cache: Any, features: NDArray[np.float32] | None, rows: Sequence[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The same, with all logits as of `logits`, and the states of all rows. features: None
        where `features` is 0."""

    def close(self) -> None:
        """Release it."""


@dataclass(frozen=True)
class DrafterContext:
    """What a drafter may know of the target and of where it runs.

    key: tells the target's bundle from any other. store: folder for what is kept between
    conversations, None to keep nothing. open_model: loads a bundle as a model that drafts for this
    target, given its name or path and the name of a backend (or `auto`); it raises InputError
    where the tokenizers differ. open_head: loads a part of the target's bundle by its name; it
    raises InputError where there is none, or the backend puts out no hidden states for it.
    auxiliaries: names of the auxiliary models in that bundle.
    """

    vocab_size: int
    context_length: int
    key: str = ""
    store: Path | None = None
    open_model: Callable[[str, str], DraftModel] | None = None
    open_head: Callable[[str], HeadModel] | None = None
    auxiliaries: tuple[str, ...] = ()


@dataclass(frozen=True)
class DrafterSource:
    """A drafter opened for one loaded target: makes the drafters of its conversations, which may
    share what they learn.

    grades: per grade of its nodes, the probability to be accepted (given that the parent is) to
    start from, before anything is measured. top: how many of the target's most likely tokens after
    every node it wants to observe. hidden: hidden states it wants to observe and read (its drafters
    are StateReaders), by number of layers passed. costly: proposing takes a good part of a step, so
    it is asked only where that is expected to pay. nbytes: memory it holds for all conversations
    together. close: saves and releases; called once. part: name of the part of the bundle whose
    caches its drafters may be given (they are CacheReaders); empty for none.
    """

    name: str
    grades: tuple[float, ...]
    new: Callable[[], Drafter]
    top: int = 0
    hidden: tuple[int, ...] = ()
    costly: bool = False
    nbytes: Callable[[], int] = lambda: 0
    close: Callable[[], None] = lambda: None
    part: str = ""


Opener = Callable[[DrafterContext, Mapping[str, Any]], DrafterSource]
"""What the registry names: opens a drafter with its options by name.

Raises:
    OptionError: an option is unknown or has a bad value.
"""
