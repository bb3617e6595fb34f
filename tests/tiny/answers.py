"""Answers of a toy model: drafters of every temper, options, and the loop that runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import strategies as st
from tiny.toy_backend import (
    LogitsOf,
    ToyBackend,
    ToyDrafter,
    adversary,
    oracle,
    oracle_trees,
    random_trees,
    toy_spec,
)

from quickdraft.drafters.base import Drafter
from quickdraft.drafters.tree import Tree
from quickdraft.registry import DRAFTERS, lookup
from quickdraft.runtime.engine import Decoder
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.plan import Emission, Plan
from quickdraft.runtime.session import Session

VOCAB = 16

Factory = Callable[[LogitsOf, int], Drafter]

DRAFTER_FACTORIES: dict[str, Factory] = {
    name: lambda logits, seed, name=name: lookup("drafter", DRAFTERS, name)() for name in DRAFTERS
} | {
    "random": lambda logits, seed: ToyDrafter(random_trees(seed, VOCAB)),
    "adversary": lambda logits, seed: ToyDrafter(adversary(logits)),
    "oracle": lambda logits, seed: ToyDrafter(oracle(logits)),
    "oracle_trees": lambda logits, seed: ToyDrafter(oracle_trees(logits, seed)),
    "nonsense": lambda logits, seed: ToyDrafter(
        lambda tokens, budget: Tree.chain([tokens[-1], *[10**9] * (budget + len(tokens) % 3)])
    ),
}

prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30)


def decode(
    logits: LogitsOf,
    prompt: Sequence[int],
    config: GenerationConfig,
    drafter: Drafter | None = None,
    top: int = 0,
    **plan: object,
) -> tuple[list[int], list[Emission]]:
    backend = ToyBackend(logits, toy_spec(VOCAB, 96), top)
    session = Session(backend, drafter)
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
]
