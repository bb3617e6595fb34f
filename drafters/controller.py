"""How much to draft: the plan of every step, from what drafts bring and what steps cost."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quickdraft.device_profiles.curve import Curve
from quickdraft.drafters.acceptance import AcceptanceTable
from quickdraft.drafters.base import DrafterSource
from quickdraft.drafters.merge import Merged

MAX_NODES = 32
"""Most nodes of one step below its root."""


@dataclass(frozen=True)
class Decision:
    """What was decided for one step, and why.

    nodes: of the merged tree, those to verify, without the root. asked: names of the drafters.
    offered: nodes they proposed together. expected_tokens, expected_s: of the step; plain_s: what
    a step without drafts costs.
    """

    nodes: tuple[int, ...]
    asked: tuple[str, ...]
    offered: int
    expected_tokens: float
    expected_s: float
    plain_s: float
    reason: str


class Controller:
    """Plans the steps of all conversations of a model."""

    def __init__(
        self, curve: Curve | None, sources: Sequence[DrafterSource], table: AcceptanceTable
    ) -> None:
        """curve: None plans nothing; then only `fixed` can be used."""
        self.curve = curve
        self.table = table
        self._sources = list(sources)
        self._asked: tuple[str, ...] = ()

    def ask(self, room: int) -> list[int]:
        """Indices of the drafters to ask for a step that can hold `room` nodes."""
        asked = list(range(len(self._sources))) if room > 0 else []
        self._asked = tuple(self._sources[index].name for index in asked)
        return asked

    def budget(self, drafter: int, room: int) -> int:
        """Nodes to ask a drafter for."""
        return min(room, MAX_NODES)

    def choose(self, merged: Merged, room: int, context_length: int) -> Decision:
        """The nodes that are expected to bring most tokens per second.

        room: most nodes. context_length: tokens of the conversation.
        """
        curve = self.curve
        if curve is None:
            return self.fixed(merged, room)
        order, gains = likeliest(merged, min(room, MAX_NODES))
        plain = curve.at(1)
        best, tokens = 0, 1.0
        best_tokens, best_s = 1.0, plain
        for count, gain in enumerate(gains, 1):
            tokens += gain
            seconds = curve.at(count + 1)
            if tokens * best_s > best_tokens * seconds:
                best, best_tokens, best_s = count, tokens, seconds
        nodes = tuple(sorted(order[:best]))
        reason = "pays" if best else "nothing offered" if len(merged) == 1 else "does not pay"
        return Decision(nodes, self._asked, len(merged) - 1, best_tokens, best_s, plain, reason)

    def fixed(self, merged: Merged, nodes: int) -> Decision:
        """The likeliest nodes, at most `nodes`, whatever they cost."""
        order, gains = likeliest(merged, nodes)
        curve = self.curve
        plain = curve.at(1) if curve is not None else 0.0
        seconds = curve.at(len(order) + 1) if curve is not None else 0.0
        chosen = tuple(sorted(order))
        tokens = 1.0 + sum(gains)
        return Decision(
            chosen, self._asked, len(merged) - 1, tokens, seconds, plain, "fixed number"
        )

    def learn(
        self,
        merged: Merged,
        tokens: Sequence[int],
        decision: Decision,
        verify_s: float,
        draft_s: Mapping[str, float],
    ) -> None:
        """Take in what a step decided.

        merged: all that was proposed, verified or not. tokens: decided, in order. verify_s: seconds
        of the target's step. draft_s: seconds of each drafter that was asked, by name.
        """
        children: dict[int, list[int]] = {}
        for node in range(1, len(merged)):
            children.setdefault(merged.parent[node], []).append(node)
        at = 0
        drawn = merged.drawn()
        verified = frozenset(decision.nodes) if drawn else frozenset()
        for depth, token in enumerate(tokens, 1):
            following = -1
            for node in children.get(at, ()):
                accepted = merged.tokens[node] == token
                if accepted:
                    following = node
                if node in drawn and node not in verified:
                    continue
                for drafter, grade in merged.by[node]:
                    self.table.update(drafter, grade, depth, accepted)
            if following < 0:
                return
            at = following


def likeliest(merged: Merged, most: int) -> tuple[list[int], list[float]]:
    """The nodes with the highest probability to be accepted, best first, parents before children,
    and these probabilities. All drawn nodes come first, whatever they promise."""
    children: dict[int, list[int]] = {}
    for node in range(1, len(merged)):
        children.setdefault(merged.parent[node], []).append(node)
    reach = [1.0] * len(merged)
    for node in range(1, len(merged)):
        reach[node] = reach[merged.parent[node]] * merged.likely[node]
    order = sorted(merged.drawn())[:most]
    taken = set(order)
    heap = [
        (-reach[node], node)
        for parent in [0, *order]
        for node in children.get(parent, ())
        if node not in taken
    ]
    heapq.heapify(heap)
    while heap and len(order) < most:
        _, node = heapq.heappop(heap)
        order.append(node)
        for child in children.get(node, ()):
            heapq.heappush(heap, (-reach[child], child))
    return order, [reach[node] for node in order]
