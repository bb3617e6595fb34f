"""How much to draft: the plan of every step, from what drafts bring and what steps cost.

Verifying n nodes brings one token and the nodes that are accepted, and costs a step of n + 1 rows.
What counts in the end is tokens per second over all steps. So a step is worth its tokens, less its
time at the rate of late (Dinkelbach, "On nonlinear fractional programming", 1967), and of the
likeliest nodes as many are verified as make that largest. The goodput controller of Liu et al.
(SmartSpec, arXiv 2406.14066) maximises tokens per second of the single step instead, and so spends
too much on poor proposals and too little on good ones.

That drafting pays does not rest on estimates. The controller keeps account of what drafting has
saved and cost in the answer, in times that were measured, and never risks more in one step than the
account holds: a short answer must not lose what another one won.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quickdraft.device_profiles.curve import Curve
from quickdraft.drafters.acceptance import AcceptanceTable, Promises
from quickdraft.drafters.accounts import Account, settle
from quickdraft.drafters.base import DrafterSource
from quickdraft.drafters.merge import Merged
from quickdraft.drafters.step_cost import StepCost

MAX_NODES = 32
"""Most nodes of one step below its root."""
COSTLY_NODES = 16
"""Most nodes a costly drafter is asked for."""
TRIAL_NODES = 2
"""Nodes to ask a costly drafter for, of which nothing is known or nothing good."""
PROBE_AFTER = 48
"""After so many steps that did not draft what was offered one drafts all the same: else a curve
that says too much for several rows would never be put right."""
PROBE_NODES = 3

# The account, in plain steps: what a step without drafts costs.
FIRST_CREDIT = 0.18
"""What an answer may lose before drafting has saved anything in it."""
MOST_CREDIT = 2.0
MOST_DEBT = 1.0
"""A step that cost more than the account held leaves a debt, which has to be saved first."""
ENOUGH_MISSED = 1.5
"""What nodes must have been worth together that could not be risked, before an answer may lose its
first credit once more: two that were right, as a rule."""
MOST_SLOW = 2.0
"""A step that took longer than so many times what was expected was disturbed by something else."""
WIDER = 2
"""No planned step is more than so many times as wide as the widest one that was measured."""
FIRST_STEPS = 2
"""Steps of a loaded model that are plain in any case: what they take is what all others are
measured by."""
ALLOWANCE = 0.01
"""What drafting may cost for nothing, per decided token."""
MEMORY = 64.0
"""Steps after which an old one counts for 1/e in the rate of late."""

AROUND_SHARE = 1 / 16
MOST_AROUND = 0.2
"""In plain steps; what took longer was disturbed by something else."""

_KEEP = 1.0 - 1.0 / MEMORY


@dataclass(frozen=True)
class Decision:
    """What was decided for one step, and why.

    nodes: of the merged tree, those to verify, without the root. asked: names of the drafters.
    offered: nodes they proposed together. expected_tokens, expected_s: of the step; plain_s: what
    a step without drafts costs. context_length: tokens of the conversation. wanted: the nodes that
    the estimates were for, where that was more than could be risked.
    """

    nodes: tuple[int, ...]
    asked: tuple[str, ...]
    offered: int
    expected_tokens: float
    expected_s: float
    plain_s: float
    reason: str
    context_length: int = 0
    wanted: tuple[int, ...] = ()


class Controller:
    """Plans the steps of all conversations of a model.

    Its decisions depend on what it was told and on nothing else. Conversations in several threads
    share what is learnt; an update that another thread overtakes is lost.
    """

    def __init__(
        self, curve: Curve | None, sources: Sequence[DrafterSource], table: AcceptanceTable
    ) -> None:
        """curve: None plans nothing, and every step verifies all it has room for."""
        self.curve = curve
        self.table = table
        self._names = [source.name for source in sources]
        self._index = {name: index for index, name in enumerate(self._names)}
        self._accounts = [Account(source) for source in sources]
        self._promises = Promises()
        self._cost = StepCost(curve, MAX_NODES + 1) if curve is not None else None
        self._asked: tuple[str, ...] = ()
        self._context = 0
        self._credit = FIRST_CREDIT
        self._missed = 0.0  # what nodes would have saved that could not be risked
        self._around = 0.0  # what drafting costs a step besides asking, in seconds of late
        self._plain_steps = 0  # in a row, although there was something to verify
        # Of late, decayed: tokens, and plain steps they took. It starts with plain decoding.
        self._tokens = self._time = MEMORY / 8

    @property
    def _worth(self) -> float:
        """Tokens that the time of a plain step brings of late, at least the one of plain
        decoding."""
        return max(self._tokens / self._time, 1.0)

    def begin(self) -> None:
        """An answer starts, with an account of its own (of several at once, they share one)."""
        self._credit = min(max(self._credit, 0.0), FIRST_CREDIT)
        self._missed = 0.0

    def ask(self, room: int) -> list[int]:
        """Indices of the drafters to ask in a step that can hold `room` nodes."""
        asked = []
        if room > 0 and (self._cost is None or self._cost.plain_steps >= FIRST_STEPS):
            worth, may_spend = self._worth, self._credit > 0
            for index, account in enumerate(self._accounts):
                if account.is_due(worth, may_spend):
                    asked.append(index)
        self._asked = tuple([self._names[index] for index in asked])
        return asked

    def budget(self, drafter: int, room: int) -> int:
        """Nodes to ask a drafter for: of a costly one as many as would pay in a chain."""
        account, most = self._accounts[drafter], min(room, MAX_NODES)
        if not account.costly or self._cost is None:
            return most
        most = min(most, COSTLY_NODES)
        if not account.per_node or self._credit <= 0:
            return min(most, TRIAL_NODES)
        seconds = self._cost.seconds(self._context)
        plain, rate, worth = seconds[0], self.table.overall(drafter), self._worth
        best, best_value, tokens, reach = 1, 0.0, 0.0, 1.0
        for count in range(1, most + 1):
            reach *= rate
            tokens += reach
            value = tokens - worth * (seconds[count] / plain - 1.0 + count * account.per_node)
            if value > best_value:
                best, best_value = count, value
        return best

    def choose(self, merged: Merged, room: int, context_length: int) -> Decision:
        """The nodes that are expected to bring most tokens per second in the long run.

        room: most nodes. context_length: tokens of the conversation.
        """
        if self._cost is None:
            return self.fixed(merged, room)
        self._context = context_length
        seconds = self._cost.seconds(context_length)
        plain = seconds[0]
        if len(merged) == 1:
            reason, asked = _reason(0, 0, 0), self._asked
            return Decision((), asked, 0, 1.0, plain, plain, reason, context_length)
        kept = self._promises.kept
        likely = [kept(p, len(by)) for p, by in zip(merged.likely, merged.by, strict=True)]
        order, reach, drawn = likeliest(merged, likely, min(room, MAX_NODES))
        price, most = self._worth / plain, plain * (1.0 + self._credit)
        widest = WIDER * self._cost.widest - 1 if self._cost.plain_steps else MAX_NODES
        best = wanted = 0
        tokens = best_tokens = 1.0
        best_value = wanted_value = 1.0 - self._worth
        for count, node in enumerate(order, 1):
            tokens += reach[node]
            cost = seconds[count]
            value = tokens - price * cost
            if value > wanted_value:
                wanted, wanted_value = count, value
            # Drawn nodes are all kept: their number was decided when their drafter was asked.
            if (value > best_value and cost <= most and count <= widest) or count <= drawn:
                best, best_tokens, best_value = count, tokens, value
        reason = _reason(len(order), best, wanted)
        self._plain_steps = 0 if best else self._plain_steps + bool(order)
        if self._plain_steps >= PROBE_AFTER:
            self._plain_steps = 0
            best, reason = min(PROBE_NODES, len(order)), "to see what it costs"
            best_tokens = 1.0 + sum([reach[node] for node in order[:best]])
        return Decision(
            tuple(sorted(order[:best])),
            self._asked,
            len(merged) - 1,
            best_tokens,
            seconds[best],
            plain,
            reason,
            context_length,
            tuple(sorted(order[:wanted])) if wanted > best else (),
        )

    def fixed(self, merged: Merged, nodes: int) -> Decision:
        """The likeliest nodes, at most `nodes`, whatever they cost."""
        order, reach, _ = likeliest(merged, merged.likely, nodes)
        tokens = 1.0 + sum([reach[node] for node in order])
        plain = spent = 0.0
        if self.curve is not None:
            plain, spent = self.curve.at(1), self.curve.at(len(order) + 1)
        kept = tuple(sorted(order))
        return Decision(kept, self._asked, len(merged) - 1, tokens, spent, plain, "fixed number")

    def learn(
        self,
        merged: Merged,
        tokens: Sequence[int],
        decision: Decision,
        verify_s: float,
        draft_s: Mapping[str, float],
        around_s: float = 0.0,
    ) -> None:
        """Take in what a step decided.

        merged: all that was proposed: what was not verified teaches as well, as far as the decided
        tokens go. tokens: these, in order. verify_s: seconds of the target's step. draft_s: seconds
        of each drafter that was asked, by name. around_s: seconds of drafting besides.
        """
        path = self._walk(merged, tokens, decision.nodes) if len(merged) > 1 else []
        if self._cost is None:
            return
        seconds = self._cost.seconds(decision.context_length)
        plain, rows = seconds[0], len(decision.nodes) + 1
        if rows > len(seconds):  # a fixed number beyond what is ever planned
            return
        step = _charged(rows, seconds, verify_s)
        self._around += AROUND_SHARE * (min(around_s, MOST_AROUND * plain) - self._around)
        spent = step + self._around / plain
        if draft_s or path:
            costs = {self._index[name]: asking / plain for name, asking in draft_s.items()}
            spent += settle(self._accounts, merged, decision.nodes, path, step - 1.0, costs)
        self._tokens = self._tokens * _KEEP + len(tokens)
        self._time = self._time * _KEEP + spent
        self._credit = self._after(len(tokens) * (1.0 + ALLOWANCE) - spent, rows > 1)
        if decision.wanted:
            self._missed += _not_risked(merged, decision, path, len(tokens), seconds)
            self._missed = max(self._missed, 0.0)
            if self._missed >= ENOUGH_MISSED:
                self._missed, self._credit = 0.0, max(self._credit, FIRST_CREDIT)
        self._cost.learn(rows, decision.context_length, verify_s)

    def _after(self, saved: float, drafted: bool) -> float:
        """The account after a step. Plain steps leave no debt: what they cost besides cannot be
        saved by not drafting."""
        least = -MOST_DEBT if drafted else min(self._credit, 0.0)
        return min(max(self._credit + saved, least), MOST_CREDIT)

    def _walk(self, merged: Merged, tokens: Sequence[int], kept: Sequence[int]) -> list[int]:
        """Count who was right along the decided tokens; returns the nodes that were."""
        children: list[list[int]] = [[] for _ in merged.parent]
        for node, parent in enumerate(merged.parent):
            if node:
                children[parent].append(node)
        # What decides a drawn node is tried only where it is verified.
        untried = merged.drawn().difference(kept)
        said, by, update = merged.tokens, merged.by, self.table.update
        promise = self._promises.update
        at, path = 0, []
        for depth, token in enumerate(tokens, 1):
            following = 0
            for node in children[at]:
                right = said[node] == token
                if right:
                    following = node
                if node not in untried:
                    promise(merged.likely[node], len(by[node]), right)
                    for drafter, grade in by[node]:
                        update(drafter, grade, depth, right)
            if not following:
                break
            at = following
            path.append(at)
        return path


def likeliest(
    merged: Merged, likely: Sequence[float], most: int
) -> tuple[list[int], list[float], int]:
    """The nodes that are likeliest to be accepted, best first, parents before children; the
    probability of each node of the tree; and how many of the order were drawn.

    likely: by node, given that its parent is accepted.

    Drawn nodes come first, all of them, whatever they promise: what they promise is known only
    after they were drawn, and cutting them by it would change the distribution of the answer.
    """
    parents = merged.parent
    reach = [1.0] * len(likely)
    for node in range(1, len(likely)):
        reach[node] = reach[parents[node]] * likely[node]
    if not merged.laws:
        # A child is never likelier than its parent, and the order of equals stays.
        order = sorted(range(1, len(likely)), key=reach.__getitem__, reverse=True)
        return order[:most], reach, 0
    drawn = merged.drawn()
    first = sorted(drawn)
    others = [node for node in range(1, len(likely)) if node not in drawn]
    others.sort(key=reach.__getitem__, reverse=True)
    return [*first, *others][:most], reach, min(len(first), most)


def _not_risked(
    merged: Merged,
    decision: Decision,
    path: Sequence[int],
    tokens: int,
    seconds: Sequence[float],
) -> float:
    """Plain steps that nodes would have saved which were wanted and could not be risked, as far as
    so many decided tokens tell."""
    parents = {0, *path[: tokens - 1]}  # what follows the last token is not decided
    missed = frozenset(decision.wanted).difference(decision.nodes)
    judged = [node for node in missed if merged.parent[node] in parents]
    kept = len(decision.nodes)
    cost = (seconds[kept + len(judged)] - seconds[kept]) / seconds[0]
    return sum([node in path for node in judged]) - cost


def _charged(rows: int, seconds: Sequence[float], verify_s: float) -> float:
    """What a step cost, in plain steps: as measured, if that can be."""
    expected = seconds[rows - 1]
    if rows == 1 or not 0 < verify_s < math.inf:
        return expected / seconds[0]
    return min(verify_s, MOST_SLOW * expected) / seconds[0]


def _reason(offered: int, kept: int, wanted: int) -> str:
    if wanted > kept:
        return "no more than was saved before"
    if kept:
        return "pays"
    return "does not pay" if offered else "nothing offered"
