"""Several answers at once: one step computes a row for each of them.

Weights are read once a step whatever its rows, and reading them is most of what decoding one token
costs. The answers are branches of one tree with a root each, which grows from step to step
(GrowingBackend): a row sees its own branch and nothing else, so that on a backend whose guarantee
is `bit_identical` every answer has the bits it has alone. Decoding is plain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.distribution import Distribution
from quickdraft.drafters.tree import Tree
from quickdraft.errors import OptionError
from quickdraft.runtime.accept import rule_for
from quickdraft.runtime.backends.base import Backend, CancelToken, GrowingBackend, StepOutput
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.processors import NO_SOURCE
from quickdraft.runtime.result import FinishReason
from quickdraft.runtime.sampling import process, process_top, top_decides, top_is_tied

PROMPT_ROWS = 128
"""Of a prompt, at most, in one step: the other answers wait for it."""
MOST_TOGETHER = 64


class Asked(Protocol):
    """A prompt and the options of its answer."""

    @property
    def ids(self) -> Sequence[int]:
        """Token ids, one at least."""

    @property
    def config(self) -> GenerationConfig:
        """Of its answer: what one without drafts and stop strings can have."""


T = TypeVar("T", bound=Asked)


@dataclass(frozen=True)
class Told(Generic[T]):
    """A whole answer: its tokens, an end-of-text token included."""

    asked: T
    tokens: Sequence[int]
    finish: FinishReason


@dataclass
class _Branch(Generic[T]):
    """An answer that runs. pending: tokens that have no row yet. leaf: its last node, -1 before
    there is one."""

    asked: T
    pending: list[int]
    rng: np.random.Generator
    tokens: list[int] = field(default_factory=list)
    leaf: int = -1


class Together(Generic[T]):
    """Answers to prompts, some at a time. steps: of the backend so far."""

    def __init__(
        self,
        backend: Backend,
        eos_ids: Sequence[int],
        limit: int,
        cancel: CancelToken | None = None,
    ) -> None:
        """limit: how many run at once.

        Raises:
            OptionError: the limit is out of range, or the backend's trees do not grow.
        """
        if not 1 <= limit <= MOST_TOGETHER:
            raise OptionError(f"batch is {limit}; it must be 1 to {MOST_TOGETHER}")
        if not isinstance(backend, GrowingBackend) or backend.spec.source is not None:
            raise OptionError(
                f"batch is {limit}, and with the backend {backend.name!r} this model answers one "
                "prompt at a time; leave it out, or use decoders with the backend hotpath"
            )
        self._backend, self._grow = backend, backend.grow
        self._eos_ids, self._limit = tuple(eos_ids), limit
        self._cancel = cancel
        self._cache = backend.new_cache()
        self._branches: list[_Branch[T]] = []
        none = np.zeros(0, np.int64)
        # Of all nodes: their tokens, parents and depths, and the branch that each belongs to.
        self._tokens, self._parents, self._depths, self._owners = none, none, none, none
        self.steps = 0

    def run(self, asked: Iterator[T]) -> Iterator[Told[T]]:
        """Answer what the iterator gives, asking it whenever there is room for one more. Answers
        come as they end.

        Raises:
            Cancelled: what runs is dropped. BackendError: a step failed.
        """
        while True:
            while len(self._branches) < self._limit:
                new = next(asked, None)
                if new is None:
                    break
                rng = np.random.default_rng(np.random.SeedSequence(new.config.seed))
                self._branches.append(_Branch(new, list(new.ids), rng))
            if not self._branches:
                return
            yield from self._step()

    def _step(self) -> list[Told[T]]:
        """One row for every answer, or a chunk of its prompt; those that end with it."""
        before, wanted = len(self._tokens), []
        for number, branch in enumerate(self._branches):
            chunk, branch.pending = branch.pending[:PROMPT_ROWS], branch.pending[PROMPT_ROWS:]
            self._add(number, branch, chunk)
            if not branch.pending:
                wanted.append(number)
        leaves = [self._branches[number].leaf - before for number in wanted]
        # Some row is always asked for; where no prompt is whole yet, nobody reads it.
        output = self._run(before, np.array(leaves or [0], np.int64), wanted)
        ended = []
        for row, number in enumerate(wanted):
            branch = self._branches[number]
            token = self._decide(branch, output, row)
            branch.tokens.append(token)
            branch.pending = [token]
            reason = self._reason(branch, token)
            if reason is not None:
                ended.append((number, Told(branch.asked, branch.tokens, reason)))
        self._drop([number for number, _ in ended])
        return [told for _, told in ended]

    def _add(self, number: int, branch: _Branch[T], chunk: Sequence[int]) -> None:
        """Add a chain of nodes to a branch."""
        first, count = len(self._tokens), len(chunk)
        nodes = np.arange(first, first + count)
        start = int(self._depths[branch.leaf]) + 1 if branch.leaf >= 0 else 0
        self._tokens = np.concatenate([self._tokens, np.asarray(chunk, np.int64)])
        self._parents = np.concatenate([self._parents, [branch.leaf], nodes[:-1]])
        self._depths = np.concatenate([self._depths, np.arange(start, start + count)])
        self._owners = np.concatenate([self._owners, np.full(count, number)])
        branch.leaf = first + count - 1

    def _run(self, before: int, rows: NDArray[np.int64], wanted: Sequence[int]) -> StepOutput:
        """The step that computes the nodes from number `before` on, with all logits only where the
        largest do not decide for some of the answers `wanted`."""
        configs = [self._branches[number].asked.config for number in wanted]
        said = [len(self._branches[number].tokens) for number in wanted]
        top = self._backend.top
        few = all(top_decides(c, n, top, 1) for c, n in zip(configs, said, strict=True))
        tree = _forest(self._tokens, self._parents, self._depths)
        grow, cancel = self._grow, self._cancel
        output = grow(tree, self._cache, before, cancel, rows=rows, full_logits=not few)
        if few and output.top is not None and any(top_is_tied(output.top, c) for c in configs):
            self._cache.keep(range(before), 0)
            output = grow(tree, self._cache, before, cancel, rows=rows)
        self.steps += 1
        return output

    def _decide(self, branch: _Branch[T], output: StepOutput, row: int) -> int:
        """The next token, as decoding alone decides it."""
        config = branch.asked.config

        def distribution(path: list[int]) -> Distribution:
            if output.top is not None and not len(output.logits):
                return process_top(output.top, row, config)
            context = np.array([*branch.asked.ids, *branch.tokens], np.int64)
            rules = config, self._eos_ids, NO_SOURCE
            return process(output.logits[row], context, len(branch.tokens), *rules)

        root = Tree.chain([0])  # its token was decided; the rule looks for its children only
        return rule_for(config)(root, {}, distribution, branch.rng).token

    def _reason(self, branch: _Branch[T], token: int) -> FinishReason | None:
        """Why an answer ends with this token, None if it goes on."""
        config = branch.asked.config
        room = self._backend.spec.context_length - len(branch.asked.ids)
        if token in self._eos_ids and not config.ignore_eos:
            return "stop"
        return "length" if len(branch.tokens) >= min(config.max_new_tokens, room) else None

    def _drop(self, ended: Sequence[int]) -> None:
        """Forget the branches of some answers; the rows of the others move together."""
        if not ended:
            return
        stays = ~np.isin(self._owners, ended)
        kept = np.flatnonzero(stays)
        self._cache.keep(kept.tolist(), 0)
        moved = np.append(np.cumsum(stays) - 1, -1)  # the last one is the parent of roots
        self._parents = moved[self._parents[kept]]
        self._tokens, self._depths = self._tokens[kept], self._depths[kept]
        left = [number for number in range(len(self._branches)) if number not in ended]
        self._owners = np.searchsorted(left, self._owners[kept])
        self._branches = [self._branches[number] for number in left]
        for branch in self._branches:
            branch.leaf = int(moved[branch.leaf])


def _forest(
    tokens: NDArray[np.int64], parents: NDArray[np.int64], depths: NDArray[np.int64]
) -> Tree:
    """The tree of these nodes. Made in every step of many nodes: what its checks and its loop over
    all nodes would find is known."""
    tree = object.__new__(Tree)
    chain = bool((parents == np.arange(-1, len(tokens) - 1)).all())
    tree.__dict__.update(tokens=tokens, parent=parents, depth=depths, is_chain=chain)
    return tree
