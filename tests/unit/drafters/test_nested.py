"""Exits of a nested draft: who is asked, what they have read, and what they say of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.toy_backend import LogitsOf, hashed
from tiny.toy_nested import EXITS, ToyNested

from quickdraft.drafters.nested import NestedModel
from quickdraft.drafters.tree import Tree

VOCAB, CONTEXT = 8, 64
LAW = hashed(VOCAB, scale=2.0)


def sharper(number: int) -> LogitsOf:
    """Later exits are surer, and say the same."""
    return lambda tokens: np.float32(number) * LAW(tokens)


def nested(sure: float) -> tuple[NestedModel, list[ToyNested]]:
    heads = [ToyNested(n, sharper(n), VOCAB, CONTEXT) for n in range(1, EXITS + 1)]
    return NestedModel(heads, sure), heads


def expected(tokens: tuple[int, ...], sure: float) -> tuple[int, np.ndarray]:
    """The first exit that is sure, and its logits."""
    for number in range(1, EXITS + 1):
        logits = sharper(number)(tokens)
        odds = np.exp(logits - logits.max())
        if 1 / odds.sum() > sure:
            break
    return number, logits


@pytest.mark.parametrize("sure", [0.0, 0.4, 0.7, 1.0])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_whatever_was_skipped_is_read_when_it_is_needed(sure: float, data: st.DataObject) -> None:
    """Random chains, trees, commits and truncations: every row has the logits of the first exit
    that is sure of it, over the very tokens it sees."""
    model, _ = nested(sure)
    cache = model.new_cache()
    known: list[int] = []
    for _ in range(data.draw(st.integers(1, 8))):
        size = data.draw(st.integers(1, 5))
        tokens = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=size, max_size=size))
        parents = [-1] + [data.draw(st.integers(-1, at - 1)) for at in range(1, size)]
        tree = Tree(np.array(tokens), np.array(parents))
        rows = sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1)))
        found = model.logits(tree, cache, rows)
        paths: list[list[int]] = []
        for node, parent in enumerate(parents):
            paths.append([*(paths[parent] if parent >= 0 else []), node])
        for row, logits in zip(rows, found, strict=True):
            seen = (*known, *(tokens[node] for node in paths[row]))
            assert np.array_equal(logits, expected(seen, sure)[1])
        path = paths[data.draw(st.integers(0, size - 1))]
        path = path[: data.draw(st.integers(0, len(path)))]
        cache.commit(path)
        known += [tokens[node] for node in path]
        if data.draw(st.booleans()):
            del known[data.draw(st.integers(0, len(known))) :]
            cache.truncate(len(known))
        assert cache.length == len(known)


def test_sure_exits_end_it() -> None:
    model, heads = nested(0.0)
    cache = model.new_cache()
    model.logits(Tree.chain([1, 2, 3]), cache, [2])
    cache.commit([0, 1, 2])
    assert model.asked == [1, 0, 0]
    assert [head.rows for head in heads] == [[3], [], []]
    assert cache.nbytes > 0


def test_what_waited_is_read_in_one_step() -> None:
    model, heads = nested(0.0)
    cache = model.new_cache()
    for token in (1, 2, 3):
        model.logits(Tree.chain([token]), cache, [0])
        cache.commit([0])
    model._sure = 1.0
    model.logits(Tree.chain([4]), cache, [0])
    assert [head.rows for head in heads] == [[1, 1, 1, 1], [3, 1], [3, 1]]
    assert model.asked == [4, 1, 1]
