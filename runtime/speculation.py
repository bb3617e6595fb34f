"""What one conversation drafts: its drafters are asked, their trees merged and cut, and told what
was decided."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.base import (
    CacheReader,
    Draft,
    DrafterSource,
    DraftSettings,
    Drawn,
    Observation,
    StateReader,
)
from quickdraft.drafters.controller import Decision
from quickdraft.drafters.merge import Merged, chain_of, cut, merge
from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError
from quickdraft.kvcache.base import KvCache
from quickdraft.runtime import clock
from quickdraft.runtime.backends.base import StepOutput
from quickdraft.runtime.drafting import Drafting
from quickdraft.runtime.sampling import largest

UNPLANNED_NODES = 8
"""Nodes per step where nothing is known of what a step costs."""

MOST_BEHIND = 64
"""Plain steps that drafters may be behind, for as long as nobody asks them."""

_log = logging.getLogger(__name__)

_NOBODY: Mapping[str, float] = MappingProxyType({})


class Proposal(NamedTuple):
    """What a step verifies. Times in seconds.

    merged: of `tree`; None for plain decoding. offered: all that was proposed, before the cut.
    fallbacks: drafts that could not be used. draft_s: all of drafting; draft_s_by: by drafter.
    names: of all drafters, in order.
    """

    tree: Tree
    merged: Merged | None = None
    offered: Merged | None = None
    decision: Decision | None = None
    fallbacks: int = 0
    draft_s: float = 0.0
    draft_s_by: Mapping[str, float] = _NOBODY
    names: tuple[str, ...] = ()

    @property
    def laws(self) -> Mapping[int, Drawn]:
        """How children were drawn, by node."""
        return self.merged.laws if self.merged is not None else {}

    @property
    def drawn(self) -> int:
        """Nodes that were drawn."""
        return len(self.merged.drawn()) if self.laws and self.merged is not None else 0

    @property
    def depth(self) -> int:
        """Of the deepest node."""
        return int(self.tree.depth.max()) if len(self.tree) > 1 else 0

    def counts(self, accepted: Sequence[int]) -> Mapping[str, tuple[int, int]]:
        """By drafter, nodes it proposed and those of them that are among `accepted`."""
        if self.merged is None:
            return {}
        drafted = [0] * len(self.names)
        right = [0] * len(self.names)
        taken = frozenset(accepted)
        for node, by in enumerate(self.merged.by):
            for drafter, _ in by:
                drafted[drafter] += 1
                right[drafter] += node in taken
        counts = zip(self.names, drafted, right, strict=True)
        return {name: (made, good) for name, made, good in counts if made}


class Verdict(NamedTuple):
    """What a step made of a proposal.

    tokens: that became part of the answer; decided: these and what followed where the answer
    ended. path: accepted nodes, root first, as many as tokens. rows: of `output`'s logits for the
    nodes of the tree. states: rows of its hidden states for the path. verify_s: seconds.
    """

    tokens: Sequence[int]
    decided: Sequence[int]
    path: Sequence[int]
    output: StepOutput
    states: Sequence[int]
    verify_s: float


class _Gathered(NamedTuple):
    """Drafts by drafter, seconds of those that were asked, and how many could not be used."""

    drafts: list[Draft | None]
    seconds: Mapping[str, float]
    fallbacks: int


class _Step(NamedTuple):
    """A plain step that drafters may not know yet. top: row of Observation.top, None without."""

    root: int
    token: int
    top: NDArray[np.int64] | None


class Speculation:
    """The drafters of one conversation. Changes when tokens come, never which.

    Where nothing is drafted a drafter hears of plain steps when it is asked next: several at once
    cost less, and beside the step of a small model every microsecond counts.
    """

    def __init__(self, drafting: Drafting) -> None:
        self.drafting = drafting
        with drafting.lock:
            self._drafters = [source.new() for source in drafting.sources]
        self._nodes: int | None = None
        self._failed: set[int] = set()
        self._steps: list[_Step] = []
        self._told = [0] * len(self._drafters)  # of these steps, by drafter

    def begin(self, tokens: Sequence[int], settings: DraftSettings, nodes: int | None) -> None:
        """Start an answer after `tokens`. nodes: to draft per step, None if that is planned."""
        self._nodes = nodes
        if nodes is None and self.drafting.curve is None:
            self._nodes = UNPLANNED_NODES
        with self.drafting.lock:
            self._catch_up()
            self.drafting.controller.begin()
            for drafter in self._drafters:
                drafter.begin(tokens, settings)

    def end(self) -> None:
        """An answer ended, however: tell drafters what they do not know of it."""
        with self.drafting.lock:
            self._catch_up()

    def _catch_up(self, drafter: int | None = None) -> None:
        """Tell a drafter of the plain steps since, or all of them. The lock is held."""
        for index in range(len(self._drafters)) if drafter is None else (drafter,):
            steps = self._steps[self._told[index] :]
            if steps:
                self._told[index] = len(self._steps)
                self._drafters[index].observe(_together(steps))
        if drafter is None and self._steps:
            self._steps = []
            self._told = [0] * len(self._drafters)

    def read(self, start: int, states: Mapping[int, NDArray[np.float32]], count: int) -> None:
        """Show drafters the target's hidden states at `count` tokens, from number `start` on: of
        the prompt, or, after a refresh, of all that was decided."""
        if not self.drafting.hidden or not count:
            return
        with self.drafting.lock:
            for source, drafter in zip(self.drafting.sources, self._drafters, strict=True):
                if source.hidden:
                    known = {k: states[k][:count] for k in source.hidden}
                    cast(StateReader, drafter).read(start, known)

    def adopt(self, part: str, tokens: Sequence[int], cache: KvCache) -> None:
        """Let drafters that run the part of that name go on from its cache of these tokens, which
        nobody else uses any more."""
        for source, drafter in zip(self.drafting.sources, self._drafters, strict=True):
            if source.part == part:
                cast(CacheReader, drafter).adopt(tokens, cache)
                return

    def propose(self, root: int, room: int, context_length: int) -> Proposal:
        """The next tree: what the drafters make of the tokens so far, cut to what pays.

        root: the last token known. room: most nodes that make sense. context_length: tokens known.
        """
        started = clock.now()
        shared = self.drafting
        controller = shared.controller
        planned = self._nodes is None
        room = room if self._nodes is None else min(self._nodes, room)
        with shared.lock:
            if planned:
                budgets = {index: controller.budget(index, room) for index in controller.ask(room)}
            else:
                budgets = dict.fromkeys(range(len(self._drafters)), room)
        gathered = self._gather(root, budgets)
        with shared.lock:
            if budgets:
                offered = merge(root, gathered.drafts, controller.table.rate)
            else:
                offered = Merged([root], [-1], [1.0], [()])
            if shared.chains_only and len(offered) > 2:
                offered = chain_of(offered)
            if planned:
                decision = controller.choose(offered, room, context_length)
            else:
                decision = replace(controller.fixed(offered, room), asked=tuple(gathered.seconds))
        merged = cut(offered, decision.nodes)
        tree = merged.tree if len(merged) > 1 else Tree.chain([root])
        return Proposal(
            tree,
            merged,
            offered,
            decision,
            gathered.fallbacks,
            clock.now() - started,
            gathered.seconds,
            shared.names,
        )

    def _gather(self, root: int, budgets: Mapping[int, int]) -> _Gathered:
        """Ask drafters, given by index, for so many nodes each."""
        shared = self.drafting
        drafts: list[Draft | None] = [None] * len(self._drafters)
        seconds: dict[str, float] = {}
        fallbacks, draws = 0, False
        for index, budget in budgets.items():
            started = clock.now()
            source = shared.sources[index]
            draft = self._ask(index, budget) if budget > 0 else None
            if draft is not None:
                if not is_usable(draft, source, root, budget, shared.spec.vocab_size):
                    draft = None
                    fallbacks += 1
                elif draft.laws:
                    # Two that draw would compete for the same nodes by what they drew.
                    draft, draws = (None if draws else draft), True
            drafts[index] = draft
            seconds[source.name] = clock.now() - started
        return _Gathered(drafts, seconds, fallbacks)

    def _ask(self, index: int, budget: int) -> Draft | None:
        """One drafter's draft. Costly ones run a model of their own and are asked without lock."""
        if index in self._failed:
            return None
        source = self.drafting.sources[index]
        try:
            if source.costly:
                with self.drafting.lock:
                    self._catch_up(index)
                return self._drafters[index].propose(budget)
            with self.drafting.lock:
                self._catch_up(index)
                return self._drafters[index].propose(budget)
        except BackendError as error:
            self._failed.add(index)
            _log.warning("the drafter %r failed and rests: %s", source.name, error)
            return None

    def observe(self, proposal: Proposal, verdict: Verdict) -> None:
        """Tell drafters and controller what was decided."""
        started = clock.now()
        shared = self.drafting
        top = top_ids(verdict.output, shared.top) if shared.top else None
        with shared.lock:
            if len(proposal.tree) == 1 and not shared.hidden and len(verdict.tokens) == 1:
                row = None if top is None else top[0].copy()  # valid until the next step only
                root = int(proposal.tree.tokens[0])
                self._steps.append(_Step(root, verdict.tokens[0], row))
                if len(self._steps) >= MOST_BEHIND:
                    self._catch_up()
            else:
                self._catch_up()
                rows = list(verdict.states)
                states = {k: verdict.output.hidden_states[k][rows] for k in shared.hidden}
                seen = Observation(verdict.tokens, proposal.tree, verdict.path, top, states)
                for drafter in self._drafters:
                    drafter.observe(seen)
            if proposal.offered is not None and proposal.decision is not None:
                around = proposal.draft_s - sum(proposal.draft_s_by.values())
                shared.controller.learn(
                    proposal.offered,
                    verdict.decided,
                    proposal.decision,
                    verdict.verify_s,
                    proposal.draft_s_by,
                    around + clock.now() - started,
                )


def _together(steps: Sequence[_Step]) -> Observation:
    """Plain steps as if they had been one that verified a chain."""
    rows = [step.top for step in steps if step.top is not None]
    return Observation(
        [step.token for step in steps],
        Tree.chain([step.root for step in steps]),
        range(len(steps)),
        np.array(rows, np.int64) if len(rows) == len(steps) else None,
    )


def is_usable(draft: Draft, source: DrafterSource, root: int, budget: int, vocab_size: int) -> bool:
    """Whether a draft can be verified as it is."""
    tokens, parents = draft.tree.tokens.tolist(), draft.tree.parent.tolist()
    size, grades = len(tokens), draft.grades
    return (
        1 < size <= budget + 1
        and tokens[0] == root
        and min(tokens) >= 0
        and max(tokens) < vocab_size
        and parents.count(-1) == 1
        and len(grades) == size
        and min(grades[1:]) >= 0
        and max(grades[1:]) < len(source.grades)
        and all(_is_drawable(drawn, node, tokens, parents) for node, drawn in draft.laws.items())
    )


def _is_drawable(drawn: Drawn, node: int, tokens: list[int], parents: list[int]) -> bool:
    """Whether the drawn children of a node can have come from its law."""
    children = [token for token, parent in zip(tokens, parents, strict=True) if parent == node]
    first = children[: drawn.count]
    return (
        1 <= drawn.count <= len(children)
        and len(set(first)) == len(first)
        and all(drawn.law.probability(token) > 0 for token in first)
    )


def top_ids(output: StepOutput, count: int) -> NDArray[np.int64]:
    """The most likely tokens of every row, best first: int64 [rows, count], or fewer columns where
    the backend has fewer and no logits were asked for."""
    if output.top is not None and (count <= output.top.ids.shape[1] or not len(output.logits)):
        return output.top.ids[:, :count]
    found = np.empty((len(output.logits), min(count, output.logits.shape[1])), np.int64)
    for row, logits in zip(found, output.logits, strict=True):
        ids = largest(logits, len(row))
        row[:] = ids[np.argsort(-logits[ids], kind="stable")][: len(row)]
    return found
