"""Trees that grow over several steps: every row is what decoding its path plainly gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny.bundle_backends import GROWING, write_for_growing

import quickdraft
from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError
from quickdraft.runtime.backends.base import Backend, GrowingBackend
from quickdraft.runtime.model import Model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_for_growing(tmp_path_factory.mktemp("growing") / "model")


@pytest.fixture(params=GROWING)
def model(bundle: Path, request: pytest.FixtureRequest) -> Iterator[Model]:
    with quickdraft.load(bundle, backend=request.param, drafter="none", offline=True) as model:
        yield model


def plain(backend: Backend, tokens: list[int]) -> np.ndarray:
    """Logits after tokens that are decoded one by one."""
    cache = backend.new_cache()
    for token in tokens:
        logits = backend.step(Tree.chain([token]), cache).logits
        cache.commit([0])
    return logits[0].copy()


class Grown:
    """A tree that grows at random, beside the tokens on the way to its nodes."""

    def __init__(self, backend: Backend, seed: int) -> None:
        self.backend, self.random = backend, np.random.default_rng(seed)
        assert isinstance(backend, GrowingBackend)
        self.grow = backend.grow
        self.cache = backend.new_cache()
        self.committed = self.tokens(5)
        backend.step(Tree.chain(self.committed), self.cache)
        self.cache.commit(range(5))
        self.nodes: list[tuple[int, int]] = []  # token and parent

    def tokens(self, count: int) -> list[int]:
        return self.random.integers(5, 300, count).tolist()

    def path(self, node: int) -> list[int]:
        return [] if node < 0 else [*self.path(self.nodes[node][1]), self.nodes[node][0]]

    def add(self, count: int) -> None:
        """Grow by so many nodes, and check them."""
        staged = len(self.nodes)
        for token in self.tokens(count):
            self.nodes.append((token, int(self.random.integers(-1, max(staged, 1)))))
            self.nodes[-1] = (token, min(self.nodes[-1][1], staged - 1))
        tree = Tree(*(np.array(column, np.int64) for column in zip(*self.nodes, strict=True)))
        logits = self.grow(tree, self.cache, staged).logits.copy()
        assert len(logits) == count
        assert self.cache.staged == len(self.nodes)
        for row in self.random.choice(count, min(count, 2), replace=False):
            wanted = plain(self.backend, self.committed + self.path(staged + row))
            if self.backend.trees == "exact":
                assert logits[row].tobytes() == wanted.tobytes()
            else:
                np.testing.assert_allclose(logits[row], wanted, atol=1e-4)

    def drop(self) -> None:
        """Keep what leads to two nodes, and commit what they share."""
        ends = self.random.choice(len(self.nodes), min(2, len(self.nodes)), replace=False)
        paths = []
        for end in ends.tolist():
            path = []
            while end >= 0:
                path.append(end)
                end = self.nodes[end][1]
            paths.append(path[::-1])
        shared = [a for a, *b in zip(*paths, strict=False) if all(x == a for x in b)]
        kept = sorted({node for path in paths for node in path})
        self.cache.keep(kept, len(shared))
        self.committed = self.committed + [self.nodes[node][0] for node in shared]
        number = {node: at for at, node in enumerate(kept[len(shared) :])}
        self.nodes = [(self.nodes[n][0], number.get(self.nodes[n][1], -1)) for n in number]


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_of_a_growing_tree_are_those_of_plain_decoding(model: Model, seed: int) -> None:
    grown = Grown(model.backend, seed)
    for count in (3, 1, 4, 20, 2, 5):
        grown.add(count)
        if count != 20:
            grown.drop()


def test_growing_needs_the_rows_it_stands_on(model: Model) -> None:
    grown = Grown(model.backend, 0)
    with pytest.raises(BackendError, match="2, and the cache has 0 staged"):
        grown.grow(Tree.chain([1, 2, 3]), grown.cache, 2)
    assert grown.cache.length == 5
    grown.add(2)
