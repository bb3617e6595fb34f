"""Deciding from the largest logits gives the answers that all logits give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.answers import FACTORIES, OPTIONS, VOCAB, decode, prompts
from tiny.toy_backend import ToyBackend, hashed, toy_spec

from quickdraft.runtime.engine import Decoder
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.plan import Emission, Plan
from quickdraft.runtime.session import Session


@pytest.mark.parametrize("name", [None, "prompt_lookup", "random", "several"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o) or "plain")
@settings(max_examples=6, deadline=None)
@given(prompt=prompts, seed=st.integers(0, 99), top=st.integers(1, VOCAB), ties=st.booleans())
def test_an_answer_does_not_depend_on_which_logits_the_backend_gives(
    name: str | None, options: dict[str, object], prompt: list[int], seed: int, top: int, ties: bool
) -> None:
    """From the largest logits or from all of them: the same tokens with the same draws."""
    smooth = hashed(VOCAB)
    logits = (lambda tokens: np.round(smooth(tokens))) if ties else smooth
    config = GenerationConfig(max_new_tokens=30, logprobs=3, **options)

    def answer(top: int) -> tuple[list[int], list[Emission]]:
        sources = FACTORIES[name](logits, seed) if name else []
        return decode(logits, prompt, config, sources, top, eos_ids=(2,))

    expected, slow = answer(0)
    tokens, emissions = answer(top)
    assert tokens == expected
    assert [e.tokens for e in emissions] == [e.tokens for e in slow]
    pairs = zip(
        (entry for e in emissions for entry in e.logprobs),
        (entry for e in slow for entry in e.logprobs),
        strict=True,
    )
    for ours, theirs in pairs:
        assert ours.token_id == theirs.token_id
        assert [i for i, _ in ours.top] == [i for i, _ in theirs.top]
        assert abs(ours.logprob - theirs.logprob) < 1e-5


def test_all_logits_are_asked_for_only_where_they_are_needed() -> None:
    logits = hashed(VOCAB)
    asked = {}
    for label, options in {
        "greedy": {},
        "few": {"temperature": 1.0, "top_k": 7, "top_p": 0.9, "logprobs": 8},
        "many": {"temperature": 1.0, "top_k": 8},
        "penalty": {"repetition_penalty": 1.1},
        "minimum": {"min_new_tokens": 2},
    }.items():
        backend = ToyBackend(logits, toy_spec(VOCAB, 96), top=8)
        config = GenerationConfig(max_new_tokens=4, prefill_chunk_size=2, seed=1, **options)
        list(Decoder(backend, Session(backend), Plan(config)).run([1, 2, 3, 4, 5]))
        asked[label] = backend.full
    prompt, no, yes = [False, False], [False] * 4, [True] * 4
    assert asked == {
        "greedy": prompt + no,
        "few": prompt + no,
        "many": prompt + yes,
        "penalty": prompt + yes,
        "minimum": [*prompt, True, True, False, False],
    }


def test_a_tie_beyond_the_largest_logits_runs_the_step_again() -> None:
    row = np.float32([5, 4, 3, 3, 3, 3, 3] + [0] * 9)
    backend = ToyBackend(lambda tokens: row, toy_spec(VOCAB, 96), top=5)
    config = GenerationConfig(max_new_tokens=3, temperature=1.0, top_k=3, seed=1)
    list(Decoder(backend, Session(backend), Plan(config)).run([1]))
    assert backend.full == [False, True] * 3
