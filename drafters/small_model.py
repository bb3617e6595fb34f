"""A small model guesses what a large one will say.

Leviathan et al., "Fast Inference from Transformers via Speculative Decoding" (arXiv 2211.17192).
Any bundle with the target's tokenizer drafts. For greedy answers it proposes its likeliest path, or
a tree of likely paths (as Li et al., EAGLE-2, arXiv 2406.16858, choose theirs); where answers are
drawn at random it draws, too: a path, or a tree without replacement (see quickdraft.drafters.rsd).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.base import (
    Draft,
    DrafterContext,
    DrafterSource,
    DraftModel,
    DraftSettings,
    Observation,
)
from quickdraft.drafters.distribution import Distribution
from quickdraft.drafters.levels import GrowingTree, grade
from quickdraft.drafters.options import checked
from quickdraft.drafters.reader import Logits, Reader
from quickdraft.drafters.rsd import DrawnTree, LawsAfter, constant_branching, stochastic_beams
from quickdraft.drafters.tree import Tree
from quickdraft.errors import OptionError

_PEAK = (0.35, 0.65, 0.9)
_CHOSEN_RATES = (0.02, 0.1, 0.28, 0.5, 0.65, 0.8, 0.88, 0.92, 0.97, 0.99)
_DRAWN_RATES = ((0.45, 0.57, 0.67, 0.93), (0.1, 0.15, 0.16, 0.03), (0.05, 0.06, 0.06, 0.01))
GRADES = (*_CHOSEN_RATES, *chain.from_iterable(_DRAWN_RATES))
"""Of chosen nodes, by the probability the draft model gives them. Then of drawn ones, by
their place among their siblings and, within that, by the largest probability after the last token
known (`_PEAK`)."""

LEAST = 0.03
"""A chosen path that is less likely is not worth a look."""
_LOG_LEAST = math.log(LEAST)


@dataclass(frozen=True)
class SmallModelOptions:
    """model: name or path of the bundle that drafts. backend: what opens it, `auto` or NAME or
    NAME:DEVICE.

    method: of greedy answers `chain` is the likeliest path and anything else a tree of likely
    ones; of sampled answers `chain`, `rsd_c` and `rsd_s` are drawn and `tree` is chosen; `auto` is
    `tree` for greedy answers and `chain` for sampled ones. depth: of the deepest node. width: most
    children of a node, and most nodes of a level that are followed further. nodes: most nodes
    drawn. stop_below: what follows a path is not asked where the path is less likely than this.
    """

    LIMITS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "method": ("auto", "chain", "tree", "rsd_c", "rsd_s"),
        "depth": (1, 32),
        "width": (1, 8),
        "nodes": (1, 32),
        "stop_below": (0.0, 1.0),
    }
    model: str
    method: str = "auto"
    depth: int = 8
    width: int = 2
    nodes: int = 6
    stop_below: float = 0.4
    backend: str = "auto"

    def of_answer(self, is_drawn: bool) -> str:
        """The method of answers that are drawn at random, or not."""
        if self.method == "auto":
            # Branches add few rows and no step to a tree that is chosen. A drawn tree takes fewer
            # steps than a path, and gains less per row.
            return "chain" if is_drawn else "tree"
        return "tree" if self.method.startswith("rsd") and not is_drawn else self.method


def open_small_model(context: DrafterContext, options: Mapping[str, Any]) -> DrafterSource:
    """Load the model that drafts. Every conversation has a cache of its own.

    Raises:
        OptionError: an option is unknown, missing or has a bad value, or models cannot be loaded.
        InputError: the model is not found, or its tokenizer is another one.
    """
    chosen = checked(SmallModelOptions, "small_model", options)
    if context.open_model is None:
        raise OptionError("drafter small_model loads a model, which cannot be done here")
    return drafts_of("small_model", context.open_model(chosen.model, chosen.backend), chosen)


def drafts_of(name: str, model: DraftModel, options: SmallModelOptions) -> DrafterSource:
    """The drafter `name`, whose conversations share a model and have a cache each."""
    readers: WeakSet[Reader] = WeakSet()

    def new() -> SmallModel:
        drafter = SmallModel(model, options)
        readers.add(drafter.reader)
        return drafter

    return DrafterSource(
        name,
        GRADES,
        new,
        costly=True,
        nbytes=lambda: sum(reader.cache.nbytes for reader in list(readers)),
    )


class SmallModel:
    """The drafter of one conversation. A model that fails raises BackendError from `propose`."""

    def __init__(self, model: DraftModel, options: SmallModelOptions) -> None:
        self.reader = Reader(model)
        self._options = options
        self._settings = DraftSettings()
        self._rng = np.random.default_rng(0)

    def begin(self, tokens: Sequence[int], settings: DraftSettings) -> None:
        """Follow the conversation; the model reads it when it is first asked."""
        self._settings = settings
        self._rng = np.random.default_rng(settings.seed)
        self.reader.begin(tokens)

    def adopt(self, tokens: Sequence[int], cache: Any) -> None:
        """Go on from a cache of its model, see CacheReader."""
        self.reader.adopt(tokens, cache)

    def observe(self, observation: Observation) -> None:
        """Follow the conversation."""
        self.reader.hear(observation.tokens)

    def propose(self, budget: int) -> Draft | None:
        """A path or a tree, by the method; None where the model is not sure of anything, or the
        conversation is too long for it.

        Raises:
            BackendError: the model failed.
        """
        # The last token of a path is not read; of a tree, too, at most budget - 1 nodes are.
        budget = min(budget, self.reader.room + 1)
        if budget < 1:
            return None
        logits = self.reader.catch_up()
        method = self._options.of_answer(self._settings.law is not None)
        if method == "tree":
            draft = self._likely_tree(logits, budget)
        elif self._settings.law is None:
            draft = self._likely_path(logits, budget)
        else:
            draft = self._drawn(logits, method, min(budget, self._options.nodes))
        return draft if len(draft.tree) > 1 else None

    def _likely_path(self, logits: Logits, budget: int) -> Draft:
        """The likeliest token, then the likeliest after that."""
        tokens, grades, path = [self.reader.tokens[-1]], [0], 1.0
        budget = min(budget, self._options.depth)
        while True:
            token, probability = _likeliest(logits)
            path *= probability
            if path < LEAST:
                break
            tokens.append(token)
            grades.append(grade(probability))
            if len(tokens) > budget or path < self._options.stop_below:
                break
            logits = self.reader.guess(token)
        return Draft(Tree.chain(tokens), grades)

    def _likely_tree(self, logits: Logits, budget: int) -> Draft:
        """The `budget` likeliest paths of those that grow level by level from the likeliest nodes
        of the last one, in one step a level."""
        options = self._options
        tree = GrowingTree(self.reader.tokens[-1])
        level, rows = [0], logits[None]
        depth = min(options.depth, budget)
        for below in range(depth - 1, -1, -1):
            start = len(tree.tokens)
            for node, row in zip(level, rows, strict=True):
                path = [tree.tokens[each] for each in tree.path(node)]
                tree.add(node, self._likely(row, path), LEAST)
            level = tree.best(start, options.width, budget, options.stop_below)
            if not level or not below:
                break
            rows = self.reader.branch(tree.tokens, tree.parent, level)
        return tree.draft(budget)

    def _drawn(self, logits: Logits, method: str, budget: int) -> Draft:
        """Tokens drawn from the laws of the draft model."""
        options, root = self._options, self.reader.tokens[-1]
        first = self._law(logits, [])
        laws = self._laws_after(first, method == "chain")
        depth, width = min(options.depth, budget), min(options.width, budget)
        if method == "chain":
            drawn = constant_branching(root, laws, [1] * depth, self._rng)
        elif method == "rsd_c":
            # Branches at the root, where they are reached most often.
            levels = min(depth, budget // width)
            drawn = constant_branching(root, laws, [width] + [1] * (levels - 1), self._rng)
        else:
            levels = min(depth, budget // width)
            drawn = stochastic_beams(root, laws, width, levels, self._rng)
        peak = _peak(first)
        ranks = [min(rank, len(_DRAWN_RATES) - 1) for rank in drawn.ranks]
        grades = [len(_CHOSEN_RATES) + rank * len(_DRAWN_RATES[0]) + peak for rank in ranks]
        return Draft(drawn.tree, grades, drawn.laws)

    def _laws_after(self, first: Distribution, is_chain: bool) -> LawsAfter:
        """The draft model's laws. It is not asked after a path that is unlikely to be accepted;
        this is decided before anything below it is drawn."""
        paths = {0: 1.0}

        def laws_after(drawn: DrawnTree, nodes: Sequence[int]) -> list[Distribution | None]:
            tokens, parent = drawn.tokens, drawn.parent
            if nodes[0] == 0:
                return [first]
            for node in nodes:
                rates = _DRAWN_RATES[min(drawn.ranks[node], len(_DRAWN_RATES) - 1)]
                peak = _peak(drawn.laws[parent[node]].law)
                paths[node] = paths[parent[node]] * rates[peak]
            asked = [node for node in nodes if paths[node] >= self._options.stop_below]
            if not asked:
                return [None] * len(nodes)
            if is_chain:
                rows = self.reader.guess(tokens[-1])[None]
            else:
                rows = self.reader.branch(tokens, parent, asked)
            after = [self._path(tokens, parent, node) for node in asked]
            laws = dict(zip(asked, map(self._law, rows, after), strict=True))
            return [laws.get(node) for node in nodes]

        return laws_after

    def _path(self, tokens: Sequence[int], parent: Sequence[int], node: int) -> list[int]:
        """The guessed tokens up to a node."""
        path = []
        while node > 0:
            path.append(tokens[node])
            node = parent[node]
        return path[::-1]

    def _law(self, logits: Logits, path: Sequence[int]) -> Distribution:
        """What the answer would draw from, were the draft model the target."""
        law = self._settings.law
        assert law is not None  # only answers that are drawn come here  # noqa: S101
        return law(logits, [*self.reader.tokens, *path])

    def _likely(self, logits: Logits, path: Sequence[int]) -> list[tuple[int, float]]:
        """The `width` likeliest tokens with their probabilities, best first."""
        if self._settings.law is not None:
            law = self._law(logits, path)
            ids, weights = law.ids, law.probabilities
            total = 1.0
        else:
            best = float(logits.max())
            ids = np.flatnonzero(logits >= best + _LOG_LEAST)
            weights = np.exp(logits[ids].astype(np.float64) - best)
            total = _total(logits, best)
        order = np.argsort(-weights, kind="stable")[: self._options.width]
        return list(zip(ids[order].tolist(), (weights[order] / total).tolist(), strict=True))


def _peak(law: Distribution) -> int:
    """Which column of the rates of drawn nodes is meant."""
    return bisect_right(_PEAK, float(law.probabilities.max()))


def _likeliest(logits: Logits) -> tuple[int, float]:
    """The likeliest token and its probability."""
    token = int(np.argmax(logits))
    return token, 1.0 / _total(logits, float(logits[token]))


def _total(logits: NDArray[np.float32], best: float) -> float:
    """The sum of the probabilities over that of the best."""
    return float(np.exp(logits - np.float32(best)).sum())
