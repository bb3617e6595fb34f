"""Positions and attention biases, against a rule spelled out per row and slot."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from quickdraft.drafters.tree import Tree
from quickdraft.runtime.backends.step_inputs import MASKED, attention_bias, positions


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    size = draw(st.integers(1, 9))
    if draw(st.booleans()):
        return Tree.chain(range(size))
    parent = [draw(st.integers(-1, i - 1)) for i in range(size)]
    return Tree(np.arange(size, dtype=np.int64), np.array(parent, np.int64))


def sees(tree: Tree, length: int, row: int, slot: int, window: int | None) -> bool:
    own = length + int(tree.depth[row])
    if slot < length:
        position = slot
    elif slot < length + len(tree):
        node, ancestor = slot - length, row
        while ancestor not in (node, -1):
            ancestor = int(tree.parent[ancestor])
        if ancestor != node:
            return False
        position = length + int(tree.depth[node])
    else:
        return False
    return window is None or position > own - window


@settings(max_examples=300, deadline=None)
@given(trees(), st.integers(0, 20), st.integers(0, 10), st.none() | st.integers(1, 30))
def test_bias_follows_the_rule(tree: Tree, length: int, spare: int, window: int | None) -> None:
    slots = length + len(tree) + spare
    bias = attention_bias(tree, length, slots, window)
    expected = [
        [0 if sees(tree, length, row, slot, window) else MASKED for slot in range(slots)]
        for row in range(len(tree))
    ]
    assert bias.dtype == np.float32
    assert np.array_equal(bias, np.array(expected, np.float32))


def test_every_row_sees_itself() -> None:
    tree = Tree.chain(range(5))
    bias = attention_bias(tree, 100, 128, window=1)
    assert ((bias == 0).sum(axis=1) == 1).all()
    assert (bias[np.arange(5), 100 + np.arange(5)] == 0).all()


def test_positions() -> None:
    tree = Tree(np.array([5, 6, 7]), np.array([-1, 0, 0]))
    assert positions(tree, 10).tolist() == [10, 11, 11]
    assert positions(tree, 10).dtype == np.int64


def test_one_row_is_cheap() -> None:
    """Decoding asks for this every step; the best of many runs is far below any step."""
    tree = Tree.chain([1])
    best = min(_seconds(tree) for _ in range(200))
    assert best < 100e-6


def _seconds(tree: Tree) -> float:
    start = time.perf_counter()
    attention_bias(tree, 8000, 8064, 4096)
    return time.perf_counter() - start
