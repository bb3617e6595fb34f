"""A backend whose logits are a function of the tokens a row really sees in the cache.

Each staged row stores its token and position in a real ContiguousCache; each wanted row reads back
what is visible to it. A wrong commit, truncation, mask or position changes the tokens read, and
with them the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.base import (
    Draft,
    Drafter,
    DrafterSource,
    DraftSettings,
    Drawn,
    Observation,
)
from quickdraft.drafters.distribution import Distribution
from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError
from quickdraft.kvcache.contiguous import ContiguousCache
from quickdraft.runtime.backends.base import CancelToken, StepOutput, TopTokens, Trees
from quickdraft.types import ModelSpec

LogitsOf = Callable[[tuple[int, ...]], NDArray[np.float32]]


def toy_spec(vocab_size: int = 16, context_length: int = 128) -> ModelSpec:
    return ModelSpec("toy", 2, 8, vocab_size, context_length, (1, 1), (1, 1), 4, (None, None))


def hashed(vocab_size: int, *, markov: float = 3.0, scale: float = 1.0) -> LogitsOf:
    """Logits from all visible tokens, plus `markov` times logits from the last two (so that a
    greedy answer repeats itself, and lookups find something)."""

    def noise(tokens: Sequence[int]) -> NDArray[np.float32]:
        state = np.uint64(1469598103934665603)
        with np.errstate(over="ignore"):
            for token in tokens:
                state = (state ^ np.uint64(token + 1)) * np.uint64(1099511628211)
            mixed = (state ^ np.arange(1, vocab_size + 1, dtype=np.uint64)) * np.uint64(
                0x9E3779B97F4A7C15
            )
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        return ((mixed >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)) * 2 - 1

    @lru_cache(4096)
    def logits(tokens: tuple[int, ...]) -> NDArray[np.float32]:
        return np.float32(scale) * (noise(tokens) + np.float32(markov) * noise(tokens[-2:]))

    return logits


def scripted(vocab_size: int, prompt_length: int, script: Sequence[int]) -> LogitsOf:
    """Says `script`, whatever it is told; after its end, token 0."""

    def logits(tokens: tuple[int, ...]) -> NDArray[np.float32]:
        at = len(tokens) - prompt_length
        row = np.zeros(vocab_size, np.float32)
        row[script[at] if 0 <= at < len(script) else 0] = 10.0
        return row

    return logits


def top_tokens(logits: NDArray[np.float32], count: int) -> TopTokens:
    """The slow twin of what backends with `top` compute."""
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    wide = logits.astype(np.float64)
    largest = wide.max(axis=1)
    log_sum = largest + np.log(np.exp(wide - largest[:, None]).sum(axis=1))
    return TopTokens(np.take_along_axis(logits, ids, 1), ids, log_sum.astype(np.float32))


class ToyBackend:
    """before_step: called with the number of the step; may raise or cancel. top: as a backend's;
    full: whether each step was asked for full logits."""

    name = "toy"
    flavour = "portable"
    guarantee = "bit_identical"
    device = "CPU"
    isa = None
    kv_type = "f32"
    trees: Trees = "exact"

    def __init__(self, logits_of: LogitsOf, spec: ModelSpec | None = None, top: int = 0) -> None:
        self.logits_of = logits_of
        self.top = top
        self.full: list[bool] = []
        self.spec = spec or toy_spec()
        self.before_step: Callable[[int, CancelToken | None], None] = lambda step, cancel: None
        self.steps = 0
        self.rows: list[int] = []
        self.closed = False

    def new_cache(self) -> ContiguousCache:
        return ContiguousCache(self.spec, capacity=1)

    def close(self) -> None:
        self.closed = True

    def step(
        self,
        tree: Tree,
        cache: ContiguousCache,
        rows: NDArray[np.int64] | None = None,
        cancel: CancelToken | None = None,
        *,
        full_logits: bool = True,
    ) -> StepOutput:
        self.full.append(full_logits)
        if self.closed:
            raise BackendError("the model is closed")
        self.steps += 1
        self.before_step(self.steps, cancel)
        if cancel is not None:
            cancel.check()
        cache.stage(len(tree))
        start = cache.length
        keys = [cache.layer(layer)[0] for layer in range(2)]
        for node in range(len(tree)):
            position = start + tree.depth[node]
            assert position < self.spec.context_length, "a position beyond the context"
            for layer, key in enumerate(keys):
                key[start + node, 0] = (tree.tokens[node], position, layer, 1)
        self.rows.append(len(tree))
        wanted = range(len(tree)) if rows is None else rows.tolist()
        rowwise = [self.logits_of(self._visible(tree, keys, start, node)) for node in wanted]
        logits = np.stack(rowwise)
        states = {1: np.stack([keys[1][start + n, 0] for n in range(len(tree))])}
        if not self.top:
            return StepOutput(logits, states)
        top = top_tokens(logits, self.top)
        return StepOutput(logits if full_logits else logits[:0], states, top)

    def _visible(
        self, tree: Tree, keys: list[NDArray[np.float32]], start: int, node: int
    ) -> tuple[int, ...]:
        slots = [*range(start), *(start + np.flatnonzero(tree.mask[node]))]
        seen = [key[slots, 0] for key in keys]
        for layer, rows in enumerate(seen):
            assert (rows[:, 1] == np.arange(len(slots))).all(), "rows out of order"
            assert (rows[:, 2:] == (layer, 1)).all(), "rows of another layer"
        assert (seen[0][:, 0] == seen[1][:, 0]).all(), "layers disagree"
        return tuple(int(token) for token in seen[0][:, 0])


Propose = Callable[[list[int], int], Tree | None]


class ToyDrafter:
    """A drafter from a function of the tokens so far and a budget; may propose nonsense."""

    def __init__(self, propose: Propose) -> None:
        self.tokens: list[int] = []
        self._propose = propose

    def begin(self, tokens: Sequence[int], settings: DraftSettings) -> None:
        self.tokens = list(tokens)

    def propose(self, budget: int) -> Draft | None:
        tree = self._propose(self.tokens, budget)
        # Grades that come and go, so that trees are cut here and there.
        return None if tree is None else Draft(tree, [token % 3 for token in tree.tokens.tolist()])

    def read(self, start: int, states: Mapping[int, NDArray[np.float32]]) -> None:
        assert start + len(states[1]) < len(self.tokens)
        for number, row in enumerate(states[1], start):
            assert row[:2].tolist() == [self.tokens[number], number]

    def observe(self, observation: Observation) -> None:
        # Row i of the hidden states must be the row whose logits chose token i: the one before it.
        told = observation.hidden_states[1]
        assert len(told) == len(observation.tokens) == len(observation.path)
        chose = observation.tree.tokens[list(observation.path)]
        assert chose.tolist() == [self.tokens[-1], *observation.tokens[:-1]]
        for row, token in zip(told, observation.tokens, strict=True):
            assert row[:2].tolist() == [self.tokens[-1], len(self.tokens) - 1]
            self.tokens.append(token)


class DrawnDrafter(ToyDrafter):
    """Draws `width` children of the root and one of each of these from a law of its own."""

    def __init__(self, logits_of: LogitsOf, width: int) -> None:
        super().__init__(lambda tokens, budget: None)
        self._logits_of = logits_of
        self._width = width
        self._rng = np.random.default_rng(0)

    def begin(self, tokens: Sequence[int], settings: DraftSettings) -> None:
        super().begin(tokens, settings)
        self._rng = np.random.default_rng(settings.seed)

    def propose(self, budget: int) -> Draft | None:
        token, parent, laws = [self.tokens[-1]], [-1], {}
        width = min(self._width, budget)
        for node in range(1 + width):
            count = min(width if node == 0 else 1, budget + 1 - len(token))
            if not count:
                continue
            said = self.tokens if node == 0 else [*self.tokens, token[node]]
            weights = np.exp(self._logits_of(tuple(said)).astype(np.float64))
            law = Distribution(np.arange(len(weights)), weights / weights.sum())
            drawn = self._rng.choice(len(weights), count, replace=False, p=law.probabilities)
            token += drawn.tolist()
            parent += [node] * count
            laws[node] = Drawn(law, count)
        tree = Tree(np.array(token), np.array(parent))
        return Draft(tree, [0] * len(token), laws) if len(token) > 1 else None


def toy_source(
    propose: Propose | None = None,
    *,
    name: str = "toy",
    drafter: Callable[[], Drafter] | None = None,
) -> DrafterSource:
    """The source of toy drafters."""
    if drafter is None:
        assert propose is not None
        drafter = partial(ToyDrafter, propose)
    return DrafterSource(name, (0.3, 0.6, 0.9), drafter, hidden=(1,))


def oracle(logits_of: LogitsOf) -> Propose:
    """Always right under greedy decoding."""

    def propose(tokens: list[int], budget: int) -> Tree | None:
        said = list(tokens)
        for _ in range(budget):
            said.append(int(np.argmax(logits_of(tuple(said)))))
        return Tree.chain(said[len(tokens) - 1 :])

    return propose


def adversary(logits_of: LogitsOf) -> Propose:
    """Right for some tokens, then wrong; wrong tokens are the least likely ones."""

    def propose(tokens: list[int], budget: int) -> Tree | None:
        said = list(tokens)
        for i in range(budget):
            logits = logits_of(tuple(said))
            right = i < len(tokens) % 4
            said.append(int(np.argmax(logits) if right else np.argmin(logits)))
        return Tree.chain(said[len(tokens) - 1 :])

    return propose


def random_trees(seed: int, vocab_size: int) -> Propose:
    """Random trees whose siblings differ."""

    def propose(tokens: list[int], budget: int) -> Tree | None:
        rng = np.random.default_rng([seed, len(tokens)])
        parent, token, taken = [-1], [tokens[-1]], set()
        for _ in range(int(rng.integers(0, budget + 1))):
            edge = int(rng.integers(0, len(parent))), int(rng.integers(0, vocab_size))
            if edge not in taken:
                taken.add(edge)
                parent.append(edge[0])
                token.append(edge[1])
        return Tree(np.array(token, np.int64), np.array(parent, np.int64))

    return propose


def oracle_trees(logits_of: LogitsOf, seed: int) -> Propose:
    """Trees that hold the right path among wrong branches, in a random order of nodes."""

    def propose(tokens: list[int], budget: int) -> Tree | None:
        rng = np.random.default_rng([seed, len(tokens)])
        parent, token, said, tip = [-1], [tokens[-1]], list(tokens), 0
        while len(parent) <= budget:
            ranked = np.argsort(-logits_of(tuple(said)))
            wrong = [int(t) for t in ranked[1 : 1 + int(rng.integers(0, 3))]]
            for t in wrong[: budget - len(parent)]:
                parent.append(tip)
                token.append(t)
            parent.append(tip)
            token.append(int(ranked[0]))
            said.append(int(ranked[0]))
            tip = len(parent) - 1
        return Tree(np.array(token[: budget + 1], np.int64), np.array(parent[: budget + 1]))

    return propose
