"""The drafter contract.

Rules every drafter keeps, checked by the contract tests:

* It only proposes. Whatever it proposes, the answer stays the target's: a bad drafter costs time.
* Its state follows the tokens it is told about, never anything else: the same calls give the same
  proposals.
* It proposes nothing rather than a guess without grounds, and never more than its budget.
* Siblings of a tree carry different tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.tree import Tree

Proposals = Literal["point_mass", "sampled"]
"""point_mass: proposals are a function of what was observed. sampled: they were drawn, from a
distribution that the rule of acceptance must know."""


@dataclass(frozen=True)
class DraftSettings:
    """max_ngram: longest n-gram to look up."""

    max_ngram: int = 3


@dataclass(frozen=True)
class Observation:
    """What one step decided.

    tokens: the new tokens of the answer, in order. hidden_states: float32 [len(tokens), hidden]
    by number of layers passed; row i is the one whose logits chose tokens[i].
    """

    tokens: Sequence[int]
    hidden_states: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)


class Drafter(Protocol):
    """Proposes tokens for one conversation; not shared between conversations."""

    name: str
    proposals: Proposals

    def begin(self, tokens: Sequence[int], settings: DraftSettings) -> None:
        """Start an answer after `tokens`, the whole conversation so far.

        What it shares with the tokens known before may be kept; the rest is forgotten.
        """

    def propose(self, budget: int) -> Tree | None:
        """A tree whose root is the last token known, with at most `budget` more nodes; or None."""

    def observe(self, observation: Observation) -> None:
        """Learn what the step decided."""


def is_usable(tree: Tree, root: int, budget: int, vocab_size: int) -> bool:
    """Whether a proposal can be verified at all: drafters are guests, and may be wrong."""
    return (
        1 < len(tree) <= budget + 1
        and int(tree.tokens[0]) == root
        and int((tree.parent < 0).sum()) == 1
        and int(tree.tokens.min()) >= 0
        and int(tree.tokens.max()) < vocab_size
    )
