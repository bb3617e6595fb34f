"""A model of a few words whose law is known exactly, and how far what was drawn is from a law.

What drafting draws from a real vocabulary cannot be compared with its law: there are too many
outcomes. For four words and four tokens there are 256. The statistic is the total variation between
counts and law over its mean for exact draws: near 1 for these, and growing with the number of
draws for any others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.tree import Tree
from quickdraft.kvcache.base import KvCache
from quickdraft.kvcache.contiguous import ContiguousCache
from quickdraft.runtime.backends.base import Backend, CancelToken, StepOutput, Trees
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.sampling import process
from quickdraft.types import Guarantee, ModelSpec

VOCABULARY = 4
Law = dict[tuple[int, ...], float]
"""Probabilities of all outcomes that have one: the first tokens of an answer."""


class TinyModel:
    """A backend whose logits are a known function of all tokens that a row sees in its cache.

    Not a table of contexts: a row reads back what the cache holds for it, so that a wrong mask,
    commit or rewind changes the answer, too. Two seeds give models that agree on much.
    """

    name = "tiny"
    flavour = "portable"
    guarantee: Guarantee = "bit_identical"
    trees: Trees = "exact"
    top = 0
    device = "CPU"
    isa: str | None = None
    kv_type = "f32"

    def __init__(self, seed: int = 0) -> None:
        self.spec = ModelSpec("tiny", 1, 1, VOCABULARY, 128, (1,), (1,), 1, (None,))
        self._seed = seed
        self._after = lru_cache(1 << 14)(self._computed)

    def logits_after(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """float32 [vocabulary], after these tokens. Not to be written to."""
        return self._after(tuple(tokens))

    def _computed(self, tokens: tuple[int, ...]) -> NDArray[np.float32]:
        def noise(*key: int) -> NDArray[np.float64]:
            return np.random.default_rng(key).normal(size=VOCABULARY)

        # All models share what follows the last two tokens; the rest is their own.
        own = noise(1 + self._seed, *tokens)
        return (1.2 * noise(0, *tokens[-2:]) + 0.6 * own).astype(np.float32)

    def new_cache(self) -> ContiguousCache:
        """An empty cache."""
        return ContiguousCache(self.spec)

    def close(self) -> None:
        """Nothing is held."""

    def step(
        self,
        tree: Tree,
        cache: KvCache,
        rows: NDArray[np.int64] | None = None,
        cancel: CancelToken | None = None,
        *,
        full_logits: bool = True,
    ) -> StepOutput:
        """A token is its own key."""
        start = cache.length
        cache.stage(len(tree))
        keys = cache.layer(0)[0][:, 0, 0]
        keys[start : start + len(tree)] = tree.tokens
        before = tuple(keys[:start].astype(int).tolist())
        staged = keys[start : start + len(tree)].astype(int)
        wanted = range(len(tree)) if rows is None else rows.tolist()
        seen = [(*before, *staged[tree.mask[node]].tolist()) for node in wanted]
        return StepOutput(np.stack([self._after(tokens) for tokens in seen]))


def law_of(backend: Backend, prompt: Sequence[int], length: int, config: GenerationConfig) -> Law:
    """What plain decoding draws: the probability of every possible beginning of an answer.

    Computed by plain steps, one for each beginning that is shorter than `length`: the options have
    to leave few tokens.
    """
    cache = backend.new_cache()
    chunk = config.prefill_chunk_size
    for start in range(0, len(prompt) - 1, chunk):
        part = prompt[start : min(start + chunk, len(prompt) - 1)]
        backend.step(Tree.chain(part), cache, np.array([len(part) - 1]))
        cache.commit(range(len(part)))
    law: Law = {(): 1.0}
    for _ in range(length):
        law = {
            (*said, token): mass * probability
            for said, mass in law.items()
            for token, probability in _next(backend, cache, prompt, said, config)
        }
    return law


def _next(
    backend: Backend,
    cache: KvCache,
    prompt: Sequence[int],
    said: tuple[int, ...],
    config: GenerationConfig,
) -> Iterator[tuple[int, float]]:
    """Tokens after the beginning of an answer, with their probabilities."""
    rows = np.array([len(said)], np.int64)
    # What is staged is never committed: every beginning starts from the same cache.
    logits = backend.step(Tree.chain([prompt[-1], *said]), cache, rows).logits[0]
    context = np.array([*prompt, *said], np.int64)
    drawn = process(logits, context, len(said), config)
    return zip(drawn.ids.tolist(), drawn.probabilities.tolist(), strict=True)


def variation_ratio(counts: dict[tuple[int, ...], int], law: Law) -> float:
    """Total variation between counts and a law over its mean for exact draws.

    Infinite if something came that the law does not allow.
    """
    draws = sum(counts.values())
    if any(law.get(outcome, 0.0) == 0.0 for outcome in counts):
        return math.inf
    found = sum(abs(counts.get(outcome, 0) - draws * p) for outcome, p in law.items())
    expected = sum(mean_deviation(draws, p) for p in law.values())
    return found / expected if expected else 1.0


def ratio_limit(draws: int, law: Law) -> float:
    """What the ratio of exact draws stays below: five standard deviations above 1.

    Taking counts for independent and normal, |X - mean| has the variance (1 - 2 / pi) var(X).
    """
    variance = (1.0 - 2.0 / math.pi) * sum(draws * p * (1.0 - p) for p in law.values())
    expected = sum(mean_deviation(draws, p) for p in law.values())
    return 1.0 + 5.0 * math.sqrt(variance) / expected if expected else 1.0


def mean_deviation(draws: int, p: float) -> float:
    """The mean of |X - draws * p| for a binomial X: De Moivre's formula (Diaconis and Zabell,
    "Closed form summation for classical distributions", 1991), exact for small counts as well."""
    if not 0.0 < p < 1.0:
        return 0.0
    k = math.floor(draws * p) + 1
    choose = math.lgamma(draws + 1) - math.lgamma(k + 1) - math.lgamma(draws - k + 1)
    return 2.0 * k * math.exp(choose + k * math.log(p) + (draws - k + 1) * math.log1p(-p))
