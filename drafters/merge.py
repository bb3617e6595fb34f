"""One tree of the proposals of several drafters, and parts of it.

Plain lists instead of arrays: this runs once a step, on trees of a few dozen nodes, where a call
into NumPy costs more than the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from quickdraft.drafters.base import Draft, Drawn
from quickdraft.drafters.tree import Tree

Rate = Callable[[int, int, int], float]
"""(drafter, grade, depth): probability that such a node is accepted, given that its parent is."""

_DROPPED = -1


@dataclass(frozen=True)
class Merged:
    """A tree and what is known of its nodes. Parents come before children, drawn children before
    chosen ones.

    tokens, parent: as in Tree. likely: estimated probability that a node is accepted given that
    its parent is (root 1); that of a drawn node does not know who else proposed it. by: per node
    the drafters that proposed it, each with its grade. laws: by node, how its first children were
    drawn.
    """

    tokens: list[int]
    parent: list[int]
    likely: list[float]
    by: list[tuple[tuple[int, int], ...]]
    laws: Mapping[int, Drawn] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def tree(self) -> Tree:
        """What a backend verifies."""
        return Tree(np.array(self.tokens, np.int64), np.array(self.parent, np.int64))

    def drawn(self) -> frozenset[int]:
        """Nodes that were drawn. They are kept or cut by what was known before the first draw."""
        if not self.laws:
            return frozenset()
        left = {node: law.count for node, law in self.laws.items()}
        found = []
        for node, parent in enumerate(self.parent):
            if left.get(parent, 0):
                left[parent] -= 1
                found.append(node)
        return frozenset(found)


def merge(root: int, drafts: Sequence[Draft | None], rate: Rate) -> Merged:
    """All paths of all drafts, equal beginnings once.

    root: the last token known, the root of every draft. A node is as likely as its proposers say on
    average (the surest of them is often too sure, which is why it is the surest). Of chosen
    siblings at most one can be right, so where they promise too much all but the likeliest are
    lowered. Drawn children of one draft have their parent's law to themselves: those of another are
    left out, with what hangs below them, because a node follows one law.
    """
    merged = Merged([root], [-1], [1.0], [()], {})
    depth = [0]
    index: dict[tuple[int, int], int] = {}
    # Drafts with laws first, so that drawn children come first.
    order = [(d, draft) for d, draft in enumerate(drafts) if draft is not None]
    if any(draft.laws for _, draft in order):
        order.sort(key=lambda entry: not entry[1].laws)
    for d, draft in order:
        _add(merged, depth, index, d, draft, rate)
    _share(merged)
    return merged


def _add(
    merged: Merged,
    depth: list[int],
    index: dict[tuple[int, int], int],
    drafter: int,
    draft: Draft,
    rate: Rate,
) -> None:
    """Add the nodes of one draft. depth: of the nodes so far; index: nodes by parent and token."""
    tokens, parents, likely, by = merged.tokens, merged.parent, merged.likely, merged.by
    laws: dict[int, Drawn] = merged.laws  # type: ignore[assignment]  # ours until it is returned
    drawn = merged.drawn()
    left = {node: law.count for node, law in draft.laws.items()}
    held = set(parents) if left else set()  # nodes that have children of other drafts
    where = [0]
    nodes = zip(draft.tree.tokens.tolist(), draft.tree.parent.tolist(), draft.grades, strict=True)
    next(nodes)  # the root
    for token, old_parent, grade in nodes:
        parent = where[old_parent]
        if left:
            is_drawn = left.get(old_parent, 0) > 0
            if is_drawn:
                left[old_parent] -= 1
            if parent == _DROPPED or (is_drawn and parent in held):
                where.append(_DROPPED)
                continue
            if is_drawn:
                laws[parent] = draft.laws[old_parent]
        key = (parent, token)
        level = depth[parent] + 1
        sure = rate(drafter, grade, level)
        node = index.get(key)
        if node is None:
            node = index[key] = len(tokens)
            tokens.append(token)
            parents.append(parent)
            likely.append(sure)
            by.append(((drafter, grade),))
            depth.append(level)
        else:
            by[node] += ((drafter, grade),)
            if node not in drawn:
                likely[node] += (sure - likely[node]) / len(by[node])
        where.append(node)


def _share(merged: Merged) -> None:
    """Lower chosen siblings that together promise more than is left for them.

    The likeliest stays as it is, whoever disagrees: its drafters have been in disagreements before.
    The others share what is left.
    """
    likely, parents = merged.likely, merged.parent
    total = [0.0] * len(likely)
    for parent, sure in zip(parents, likely, strict=True):
        total[parent] += sure
    total[-1] -= 1.0  # the root's, whose parent is -1
    if max(total) <= 1.0:
        return
    drawn = merged.drawn()
    for parent, promised in enumerate(total):
        if promised <= 1.0:
            continue
        children = [node for node in range(1, len(likely)) if parents[node] == parent]
        left = max(1.0 - sum([likely[node] for node in children if node in drawn]), 0.0)
        chosen = [node for node in children if node not in drawn]
        chosen.sort(key=likely.__getitem__, reverse=True)
        for node in chosen[:1]:
            likely[node] = min(likely[node], left)
            left -= likely[node]
        others = sum([likely[node] for node in chosen[1:]])
        for node in chosen[1:]:
            likely[node] *= min(1.0, left / others)


def cut(merged: Merged, kept: Sequence[int]) -> Merged:
    """The part of a tree that holds its root and the nodes `kept`, in their order in `merged`.

    Raises:
        ValueError: a node is kept without its parent, or a drawn one without those drawn before it.
    """
    if len(kept) == len(merged) - 1:
        return merged
    where = {0: 0, -1: -1}
    for node in sorted(kept):
        where[node] = len(where) - 1
    nodes = list(where)
    nodes.remove(-1)
    try:
        parent = [where[merged.parent[node]] for node in nodes]
    except KeyError as missing:
        raise ValueError(f"node {missing} has children that are kept and is not kept") from None
    laws = _cut_laws(merged, where) if merged.laws else {}
    return Merged(
        [merged.tokens[node] for node in nodes],
        parent,
        [merged.likely[node] for node in nodes],
        [merged.by[node] for node in nodes],
        laws,
    )


def _cut_laws(merged: Merged, where: Mapping[int, int]) -> dict[int, Drawn]:
    """Laws of the nodes that stay, with as many drawn children as stay."""
    laws = {}
    seen: dict[int, list[bool]] = {node: [] for node in merged.laws}
    for node in sorted(merged.drawn()):
        seen[merged.parent[node]].append(node in where)
    for node, stays in seen.items():
        count = sum(stays)
        if count != len(stays) and any(stays[count:]):
            raise ValueError(
                f"a drawn child of node {node} is kept, and one drawn before it is not"
            )
        if count:
            laws[where[node]] = Drawn(merged.laws[node].law, count)
    return laws


def chain_of(merged: Merged) -> Merged:
    """The one path that is expected to bring most tokens, for backends that verify chains.

    From a node with a law it follows the first drawn child, whatever the others promise.
    """
    parents, likely = merged.parent, merged.likely
    size = len(likely)
    worth = [0.0] * size  # expected accepted nodes below
    following = [_DROPPED] * size
    drawn = merged.drawn()
    for node in range(size - 1, 0, -1):
        parent = parents[node]
        if node in drawn:
            # Siblings are met last to first: the first drawn one stays.
            worth[parent], following[parent] = likely[node] * (1 + worth[node]), node
        elif parent not in merged.laws:
            value = likely[node] * (1 + worth[node])
            if value >= worth[parent]:  # of equals the first
                worth[parent], following[parent] = value, node
    path, node = [], following[0]
    while node != _DROPPED:
        path.append(node)
        node = following[node]
    return cut(merged, path)
