"""Answers of a toy model: drafters of every temper, options, and the loop that runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from tiny.documented import DOCUMENTED
from tiny.toy_backend import (
    DrawnDrafter,
    LogitsOf,
    Propose,
    ToyBackend,
    adversary,
    hashed,
    oracle,
    oracle_trees,
    random_trees,
    toy_source,
    toy_spec,
)
from tiny.toy_head import ToyChimera, ToyClover, ToyFalcon, ToyHead
from tiny.toy_heads_ahead import ToyHydra, ToyMedusa
from tiny.toy_nested import ToyNested

from quickdraft.device_profiles.curve import Curve
from quickdraft.drafters.base import DrafterContext, DrafterSource, DraftModel
from quickdraft.drafters.tree import Tree
from quickdraft.registry import DRAFTERS, lookup
from quickdraft.runtime.draft_model import BackendDraftModel
from quickdraft.runtime.drafting import Drafting
from quickdraft.runtime.engine import Decoder
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.heads import BackendHead
from quickdraft.runtime.plan import Emission, Plan
from quickdraft.runtime.session import Session

ALL = {name: path for name, path in {**DRAFTERS, **DOCUMENTED}.items() if name != "shallow"}
"""All drafters of the registry that need no memory, and the one of the documentation."""

VOCAB = 16
CONTEXT = 96

FLAT = Curve((1, 2, 4, 8, 16, 32), (1.0, 1.02, 1.05, 1.1, 1.2, 1.6))
"""Drafting pays nearly always."""
STEEP = Curve((1, 2, 4, 8), (1.0, 1.8, 3.4, 6.6))
"""Drafting pays nearly never."""

FOLLOWING = {
    "eagle": ToyHead,
    "falcon": ToyFalcon,
    "chimera": ToyChimera,
    "clover-1": ToyClover,
    "clover-2": ToyClover,
}
"""Heads by the name of their part."""

NEEDED = {"small_model": {"model": "toy"}, "auxiliary": {"part": "toy"}}
"""Options without which a drafter cannot be opened."""


def open_source(
    name: str, logits: LogitsOf, vocab: int = VOCAB, **options: object
) -> DrafterSource:
    """A drafter of the registry for a toy model; its draft model says something similar."""

    def open_model(name: str, backend: str) -> DraftModel:
        noise = hashed(vocab, markov=0.0, scale=1.5)
        similar = lambda tokens: logits(tokens) + noise(tokens)  # noqa: E731
        return BackendDraftModel(ToyBackend(similar, toy_spec(vocab, CONTEXT)), vocab)

    def similar_head(kind: type[ToyHead]) -> ToyHead:
        noise = hashed(vocab, markov=0.0, scale=1.5)
        return kind(lambda tokens: 3 * (logits(tokens) + noise(tokens)), vocab, CONTEXT)

    def open_head(name: str) -> ToyHead | ToyMedusa | ToyHydra | ToyNested | BackendHead:
        if name == "compact":
            return _compact(logits, vocab)
        if name == "toy":
            return _auxiliary(logits, vocab)
        if name.startswith("nested-"):
            number = int(name.removeprefix("nested-"))
            law = lambda tokens: number * logits(tokens)  # noqa: E731
            return ToyNested(number, law, vocab, CONTEXT)
        if name == "medusa":
            return ToyMedusa(vocab, CONTEXT)
        if name.startswith("hydra-"):
            return ToyHydra(int(name.removeprefix("hydra-")), vocab, CONTEXT)
        return similar_head(FOLLOWING[name])

    context = DrafterContext(vocab, CONTEXT, open_model=open_model, open_head=open_head)
    source: DrafterSource = lookup("drafter", ALL, name)(
        context, {**NEEDED.get(name, {}), **options}
    )
    return source


def _auxiliary(logits: LogitsOf, vocab: int) -> BackendHead:
    """A part that says something similar."""
    noise = hashed(vocab, markov=0.0, scale=1.5)
    backend = ToyBackend(lambda tokens: logits(tokens) + noise(tokens), toy_spec(vocab, CONTEXT))
    variant: Any = SimpleNamespace(details={}, features=0, memory=None)
    return BackendHead(backend, variant, None, vocab)


def _compact(logits: LogitsOf, vocab: int) -> BackendHead:
    """A part that says something similar, and does not know every token."""
    noise, known = hashed(vocab, markov=0.0, scale=1.5), np.delete(np.arange(vocab), 2)
    spec = toy_spec(len(known), CONTEXT)
    backend = ToyBackend(lambda tokens: (logits(tokens) + noise(tokens))[known], spec)
    variant: Any = SimpleNamespace(details={"kind": "compact"}, features=0, memory=None)
    return BackendHead(backend, variant, known, vocab)


def nonsense(tokens: list[int], budget: int) -> Tree | None:
    """Tokens that do not exist, and too many of them."""
    return Tree.chain([tokens[-1], *[10**9] * (budget + len(tokens) % 3)])


Factory = Callable[[LogitsOf, int], list[DrafterSource]]


def _toy(propose: Callable[[LogitsOf, int], Propose]) -> Factory:
    return lambda logits, seed: [toy_source(propose(logits, seed))]


def _registered(name: str) -> Factory:
    return lambda logits, seed: [open_source(name, logits)]


def _several(logits: LogitsOf, seed: int) -> list[DrafterSource]:
    return [
        toy_source(random_trees(seed, VOCAB), name="random"),
        toy_source(adversary(logits), name="adversary"),
        toy_source(oracle_trees(logits, seed), name="oracle_trees"),
        toy_source(nonsense, name="nonsense"),
        open_source("prompt_lookup", logits),
    ]


def drawn_source(seed: int = 0, width: int = 2, vocab: int = VOCAB) -> DrafterSource:
    """Draws from a law that has little to do with the target's."""
    law = hashed(vocab, markov=1.0, scale=0.7 + 0.1 * (seed % 5))
    return toy_source(name="drawn", drafter=partial(DrawnDrafter, law, width))


FACTORIES: dict[str, Factory] = {name: _registered(name) for name in ALL} | {
    "random": _toy(lambda logits, seed: random_trees(seed, VOCAB)),
    "adversary": _toy(lambda logits, seed: adversary(logits)),
    "oracle": _toy(lambda logits, seed: oracle(logits)),
    "oracle_trees": _toy(oracle_trees),
    "nonsense": _toy(lambda logits, seed: nonsense),
    "several": _several,
    "all": lambda logits, seed: [open_source(name, logits) for name in ALL],
    "drawn": lambda logits, seed: [drawn_source(seed)],
    "drawn and chosen": lambda logits, seed: [*_several(logits, seed), drawn_source(seed, 3)],
}

prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30)


def decode(
    logits: LogitsOf,
    prompt: Sequence[int],
    config: GenerationConfig,
    sources: Sequence[DrafterSource] = (),
    top: int = 0,
    curve: Curve | None = None,
    **plan: object,
) -> tuple[list[int], list[Emission]]:
    """An answer, and what its steps gave."""
    backend = ToyBackend(logits, toy_spec(VOCAB, CONTEXT), top)
    session = Session(backend, Drafting(sources, backend, curve))
    emissions = list(Decoder(backend, session, Plan(config, **plan)).run(prompt))
    tokens = [token for emission in emissions for token in emission.tokens]
    assert session.tokens == [*prompt, *tokens]
    assert session.cache.length == len(session.tokens) - 1
    return tokens, emissions


OPTIONS: list[dict[str, object]] = [
    {},
    {"repetition_penalty": 1.3},
    {"presence_penalty": 0.7, "frequency_penalty": 0.4},
    {"no_repeat_ngram_size": 3},
    {"min_new_tokens": 20, "logit_bias": {3: 1.5}},
    {"prefill_chunk_size": 3},
    {"temperature": 0.8, "seed": 5},
    {"temperature": 1.5, "seed": 6, "top_k": 0, "top_p": 0.8, "repetition_penalty": 1.2},
    {"temperature": 1.0, "seed": 7, "top_k": 5, "min_p": 0.05, "typical_p": 0.9},
    {"temperature": 0.9, "seed": 8, "no_repeat_ngram_size": 2, "min_new_tokens": 10},
]


def joint_law(
    logits: LogitsOf, prompt: list[int], config: GenerationConfig, vocab: int
) -> np.ndarray:
    """Of three tokens, by definition: softmax of penalised, tempered logits, cut to the nucleus."""

    def law(answer: tuple[int, ...]) -> np.ndarray:
        seen = {*prompt, *answer}
        row = logits((*prompt, *answer)).astype(np.float64)
        for token in seen:
            penalty = config.repetition_penalty
            row[token] = row[token] * penalty if row[token] < 0 else row[token] / penalty
        p = np.exp(row / config.temperature)
        p /= p.sum()
        order = sorted(range(vocab), key=lambda t: -p[t])
        mass, kept = 0.0, np.zeros(vocab)
        for token in order:
            if mass >= config.top_p:
                break
            kept[token] = p[token]
            mass += p[token]
        return kept / kept.sum()

    joint = np.zeros((vocab,) * 3)
    first = law(())
    for a in range(vocab):
        second = law((a,))
        for b in range(vocab):
            joint[a, b] = first[a] * second[b] * law((a, b))
    return joint.ravel()


def tv_ratio(counts: np.ndarray, p: np.ndarray) -> float:
    """Total variation over what it is expected to be for an exact sampler."""
    n = counts.sum()
    tv = 0.5 * np.abs(counts / n - p).sum()
    return float(tv / (0.5 * np.sqrt(2 * p * (1 - p) / (np.pi * n)).sum()))
