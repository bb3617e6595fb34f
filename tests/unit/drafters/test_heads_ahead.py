"""Drafters of heads that say tokens ahead: what the heads are asked, and the trees they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny.answers import CONTEXT, VOCAB
from tiny.toy_head import WIDTH, ToyHead
from tiny.toy_heads_ahead import HEADS, ToyHydra, ToyMedusa

from quickdraft.drafters.base import DrafterContext, DraftSettings, Observation
from quickdraft.drafters.hydra import Hydra, open_hydra
from quickdraft.drafters.medusa import Medusa, open_medusa
from quickdraft.drafters.tree import Tree
from quickdraft.errors import OptionError


def opened_medusa(**options: object) -> tuple[Medusa, ToyMedusa]:
    head = ToyMedusa(VOCAB, CONTEXT)
    source = open_medusa(DrafterContext(VOCAB, CONTEXT, open_head=lambda name: head), options)
    assert source.hidden == (1,)
    drafter = source.new()
    assert isinstance(drafter, Medusa)
    return drafter, head


def opened_hydra(**options: object) -> tuple[Hydra, dict[str, ToyHydra]]:
    heads = {f"hydra-{n}": ToyHydra(n, VOCAB, CONTEXT) for n in range(1, HEADS + 1)}
    source = open_hydra(DrafterContext(VOCAB, CONTEXT, open_head=heads.__getitem__), options)
    assert source.hidden == (1,)
    drafter = source.new()
    assert isinstance(drafter, Hydra)
    return drafter, heads


def told(before: int, new: Sequence[int]) -> Observation:
    """A step over a chain that began with `before` and decided `new`."""
    tree = Tree.chain([before, *new[:-1]])
    rows = np.zeros((len(new), WIDTH), np.float32)
    rows[:, 0] = tree.tokens
    return Observation(new, tree, list(range(len(new))), None, {1: rows})


def odds(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    each = np.exp(logits.astype(np.float64) - float(logits.max()))
    return each / each.sum()


def paths(tree: Tree) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for node in range(1, len(tree)):
        found.append((*found[int(tree.parent[node])], int(tree.tokens[node])))
    return sorted(found[1:])


def likeliest(
    law: Callable[[tuple[int, ...]], NDArray[np.float32]], count: int
) -> list[tuple[int, ...]]:
    """Of all paths of at most HEADS tokens."""
    level: list[tuple[float, tuple[int, ...]]] = [(1.0, ())]
    every = []
    for _ in range(HEADS):
        level = [
            (likely * chance, (*path, token))
            for likely, path in level
            for token, chance in enumerate(odds(law(path)))
        ]
        every += level
    return sorted(path for _, path in sorted(every, reverse=True)[:count])


def test_medusa_asks_once_and_proposes_the_likeliest_paths() -> None:
    drafter, head = opened_medusa(width=8)
    drafter.begin([5, 2], DraftSettings())
    assert drafter.propose(4) is None, "no hidden state is known"
    drafter.observe(told(2, [7, 3]))
    draft = drafter.propose(7)
    assert draft is not None
    ((tokens, features, rows),) = head.steps
    assert tokens == [3]
    assert features[0, 0] == 7, "the state that chose the last token"
    assert rows == list(range(HEADS))
    assert draft.tree.tokens[0] == 3
    assert paths(draft.tree) == likeliest(lambda path: head.law(7, len(path)), 7)


def test_hydra_asks_a_head_a_level_and_proposes_the_likeliest_paths() -> None:
    drafter, heads = opened_hydra(width=8, stop_below=0.0)
    drafter.begin([5, 2], DraftSettings())
    assert drafter.propose(4) is None, "no hidden state is known"
    drafter.observe(told(2, [7, 3]))
    draft = drafter.propose(7)
    assert draft is not None
    assert draft.tree.tokens[0] == 3
    head = heads["hydra-1"]
    assert paths(draft.tree) == likeliest(lambda path: head.law(7, [3, *path]), 7)
    for number, head in enumerate(heads.values(), 1):
        ((tokens, features, rows),) = head.steps
        assert rows == list(range(len(tokens))), "every node of a level is asked"
        known = features.reshape(len(tokens), number, WIDTH)[:, :, 0]
        assert (known[:, 0] == 7).all()
        if number > 1:
            assert (known[:, 1] == 3).all()


def test_hydra_follows_few_nodes_and_no_unlikely_ones() -> None:
    drafter, heads = opened_hydra(width=2, stop_below=0.0)
    drafter.observe(told(2, [7]))
    drafter.propose(16)
    assert [len(head.steps[0][0]) for head in heads.values()] == [1, 2, 2]
    drafter, heads = opened_hydra(stop_below=1.0)
    drafter.observe(told(2, [7]))
    draft = drafter.propose(16)
    assert draft is not None
    assert draft.tree.depth.max() == 1
    assert not heads["hydra-2"].steps


def test_the_budget_bounds_the_depth() -> None:
    drafter, heads = opened_hydra(stop_below=0.0)
    drafter.observe(told(2, [7]))
    assert drafter.propose(0) is None
    assert drafter.propose(1) is not None
    assert not heads["hydra-2"].steps


@pytest.mark.parametrize("open_it", [open_medusa, open_hydra])
def test_what_is_no_head_of_the_kind_is_refused(open_it: Any) -> None:
    other = ToyHead(lambda tokens: np.zeros(VOCAB, np.float32), VOCAB, CONTEXT)
    context = DrafterContext(VOCAB, CONTEXT, open_head=lambda name: other)
    with pytest.raises(OptionError, match="of this kind"):
        open_it(context, {"part": "x"})
    with pytest.raises(OptionError, match="there is none here"):
        open_it(DrafterContext(VOCAB, CONTEXT), {})
    bad: Mapping[str, Any] = {"width": 99}
    with pytest.raises(OptionError, match="width"):
        open_it(context, bad)
