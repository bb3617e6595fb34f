"""What every drafter and the engine promise: drafting changes the time, never the answer."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.answers import DRAFTER_FACTORIES, OPTIONS, VOCAB, decode, prompts
from tiny.toy_backend import (
    LogitsOf,
    ToyBackend,
    ToyDrafter,
    adversary,
    hashed,
    oracle,
    oracle_trees,
    random_trees,
    scripted,
    toy_spec,
)

from quickdraft.drafters.base import Drafter, DraftSettings, Observation, is_usable
from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError
from quickdraft.registry import DRAFTERS, lookup
from quickdraft.runtime.backends.base import CancelToken
from quickdraft.runtime.engine import Decoder
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.plan import Plan
from quickdraft.runtime.session import Session


@pytest.mark.parametrize("name", DRAFTER_FACTORIES)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o) or "plain")
@settings(max_examples=6, deadline=None)
@given(prompt=prompts, seed=st.integers(0, 99), budget=st.sampled_from([1, 2, 4, 8]))
def test_an_answer_does_not_depend_on_the_drafter(
    name: str, options: dict[str, object], prompt: list[int], seed: int, budget: int
) -> None:
    """Greedy, and sampled with a seed: token for token (S5)."""
    logits = hashed(VOCAB)
    base = GenerationConfig(max_new_tokens=40, **options)
    plain, _ = decode(logits, prompt, base, eos_ids=(2,))
    drafted = base.replace(prompt_lookup_num_tokens=budget)
    drafter = DRAFTER_FACTORIES[name](logits, seed)
    tokens, emissions = decode(logits, prompt, drafted, drafter, eos_ids=(2,))
    assert tokens == plain
    records = [e.record for e in emissions if e.record]
    assert sum(r.emitted for r in records) == len(tokens)
    assert all(r.accepted <= r.drafted <= budget for r in records)
    assert all(r.rows == r.drafted + 1 for r in records[1:])
    if name == "nonsense" and len(tokens) > 2:
        assert sum(r.fallbacks for r in records) > 0
        assert sum(r.drafted for r in records) == 0


def test_an_oracle_saves_steps() -> None:
    logits = hashed(VOCAB)
    config = GenerationConfig(max_new_tokens=40, prompt_lookup_num_tokens=4)
    _, emissions = decode(logits, [1, 2, 3], config, ToyDrafter(oracle(logits)))
    assert len(emissions) == 1 + -(-39 // 5)


def test_prompt_lookup_saves_steps_on_text_that_repeats() -> None:
    script = [3, 1, 4, 1, 5, 9, 2] * 9
    config = GenerationConfig(max_new_tokens=60, prompt_lookup_num_tokens=8)
    drafter = lookup("drafter", DRAFTERS, "prompt_lookup")()
    tokens, emissions = decode(scripted(VOCAB, 2, script), [7, 8], config, drafter)
    assert tokens == script[:60]
    # Two words of the second period are needed; then every draft of 8 holds.
    assert len(emissions) == 9 + -(-(60 - 9) // 9)
    assert all(e.record.accepted == e.record.drafted for e in emissions if e.record)


@pytest.mark.parametrize("name", ["prompt_lookup", "random", "oracle_trees"])
def test_sampled_sequences_have_the_exact_distribution(name: str) -> None:
    """Joint law of three tokens over a small vocabulary against the enumerated one (S1, S4)."""
    vocab, draws = 4, 2_500
    logits = hashed(vocab, markov=0.5, scale=1.2)
    config = GenerationConfig(
        temperature=1.1, top_k=0, top_p=0.97, repetition_penalty=1.15, max_new_tokens=3
    )
    backend = ToyBackend(logits, toy_spec(vocab, 96))
    prompt = [0, 1, 0, 1, 0]
    exact = _joint(logits, prompt, config, vocab)
    counts = np.zeros(vocab**3)
    drafter = {
        "prompt_lookup": lambda: lookup("drafter", DRAFTERS, "prompt_lookup")(),
        "random": lambda: ToyDrafter(random_trees(1, vocab)),
        "oracle_trees": lambda: ToyDrafter(oracle_trees(logits, 2)),
    }[name]()
    session = Session(backend, drafter)
    for seed in range(draws):
        run = Decoder(backend, session, Plan(config.replace(seed=seed))).run(prompt)
        tokens = [token for emission in run for token in emission.tokens]
        counts[np.ravel_multi_index(tokens, (vocab,) * 3)] += 1
    assert _tv_ratio(counts, exact) < 1.5


def _joint(logits: LogitsOf, prompt: list[int], config: GenerationConfig, vocab: int) -> np.ndarray:
    """By definition: softmax of penalised, tempered logits, cut to the nucleus."""

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


def _tv_ratio(counts: np.ndarray, p: np.ndarray) -> float:
    """Total variation over what it is expected to be for an exact sampler."""
    n = counts.sum()
    tv = 0.5 * np.abs(counts / n - p).sum()
    return float(tv / (0.5 * np.sqrt(2 * p * (1 - p) / (np.pi * n)).sum()))


@settings(max_examples=150, deadline=None)
@given(
    prompt=prompts,
    seed=st.integers(0, 999),
    limit=st.integers(1, 40),
    eos=st.integers(0, VOCAB - 1),
    stop=st.integers(1, 40),
    tree=st.booleans(),
)
def test_an_answer_ends_inside_a_block_where_plain_decoding_ends(
    prompt: list[int], seed: int, limit: int, eos: int, stop: int, tree: bool
) -> None:
    """End of text, a stop string or the length limit within accepted tokens (S9)."""
    logits = hashed(VOCAB)
    config = GenerationConfig(max_new_tokens=limit, prompt_lookup_num_tokens=8)

    def run(drafter: Drafter | None) -> tuple[list[int], str | None]:
        left = [stop]

        def ends_text(token: int) -> bool:
            left[0] -= 1
            return left[0] == 0

        tokens, emissions = decode(
            logits, prompt, config, drafter, eos_ids=(eos,), ends_text=ends_text
        )
        return tokens, emissions[-1].finish_reason

    propose = oracle_trees(logits, seed) if tree else oracle(logits)
    assert run(ToyDrafter(propose)) == run(None)


@pytest.mark.parametrize("budget", [1, 8, 64])
def test_the_context_limit_ends_an_answer(budget: int) -> None:
    logits = hashed(VOCAB)
    prompt = [1] * 80
    config = GenerationConfig(max_new_tokens=1000, prompt_lookup_num_tokens=budget)
    drafted, emissions = decode(logits, prompt, config, ToyDrafter(oracle(logits)))
    plain, _ = decode(logits, prompt, config)
    assert drafted == plain
    assert len(prompt) + len(drafted) == 96
    assert emissions[-1].finish_reason == "length"


@settings(max_examples=40, deadline=None)
@given(prompt=prompts, at=st.integers(1, 12), during=st.booleans(), tree=st.booleans())
def test_cancelling_at_any_step_leaves_a_session_that_goes_on(
    prompt: list[int], at: int, during: bool, tree: bool
) -> None:
    logits = hashed(VOCAB)
    config = GenerationConfig(max_new_tokens=20, prefill_chunk_size=7)
    backend = ToyBackend(logits, toy_spec(VOCAB, 96))
    drafter = ToyDrafter(oracle_trees(logits, 1) if tree else adversary(logits))
    session = Session(backend, drafter)
    cancel = CancelToken()

    def before_step(step: int, token: CancelToken | None) -> None:
        if step == at and during and token is not None:
            token.cancel()

    backend.before_step = before_step
    tokens: list[int] = []
    reason = None
    for emission in Decoder(backend, session, Plan(config, cancel=cancel)).run(prompt):
        tokens += emission.tokens
        reason = emission.finish_reason
        if not during and backend.steps >= at:
            cancel.cancel()
    steps = backend.steps
    plain, _ = decode(logits, prompt, config)
    assert tokens == plain[: len(tokens)]
    assert reason == ("cancelled" if len(tokens) < len(plain) else "length")
    assert steps <= max(at, -(-len(prompt) // 7))
    again = Decoder(backend, session, Plan(config)).run(prompt)
    assert [token for emission in again for token in emission.tokens] == plain


def test_a_failed_step_leaves_a_session_that_goes_on() -> None:
    logits = hashed(VOCAB)
    config = GenerationConfig(max_new_tokens=20)
    backend = ToyBackend(logits, toy_spec(VOCAB, 96))
    session = Session(backend, ToyDrafter(oracle(logits)))

    def fail(step: int, token: CancelToken | None) -> None:
        if step == 3:
            raise BackendError("the device is gone")

    backend.before_step = fail
    with pytest.raises(BackendError, match="gone"):
        list(Decoder(backend, session, Plan(config)).run([1, 2, 3]))
    again = Decoder(backend, session, Plan(config)).run([1, 2, 3])
    assert [t for e in again for t in e.tokens] == decode(logits, [1, 2, 3], config)[0]


@settings(max_examples=40, deadline=None)
@given(turns=st.lists(prompts, min_size=2, max_size=5), keep=st.lists(st.integers(0, 60)))
def test_a_session_answers_as_a_fresh_one(turns: list[list[int]], keep: list[int]) -> None:
    """Prefix reuse (and the drafter's own memory) change nothing but the rows computed."""
    logits = hashed(VOCAB)
    config = GenerationConfig(max_new_tokens=8)
    backend = ToyBackend(logits, toy_spec(VOCAB, 512))
    session = Session(backend, lookup("drafter", DRAFTERS, "prompt_lookup")())
    for turn, new in enumerate(turns):
        kept = keep[turn] if turn < len(keep) else len(session.tokens)
        prompt = [*session.tokens[:kept], *new]
        held = session.cache.length
        decoder = Decoder(backend, session, Plan(config))
        tokens = [token for emission in decoder.run(prompt) for token in emission.tokens]
        assert decoder.cached >= min(kept, held, len(prompt) - 1)
        fresh = ToyBackend(logits, toy_spec(VOCAB, 512))
        plain = Decoder(fresh, Session(fresh), Plan(config)).run(prompt)
        assert tokens == [token for emission in plain for token in emission.tokens]


def test_a_deadline_ends_an_answer() -> None:
    config = GenerationConfig(max_new_tokens=1000)
    deadline = time.perf_counter() - 1
    tokens, emissions = decode(hashed(VOCAB), [1], config, deadline=deadline)
    assert tokens == [] or len(tokens) < 1000
    assert emissions[-1].finish_reason == "time"


@pytest.mark.parametrize("name", DRAFTERS)
@settings(max_examples=30, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    other=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    blocks=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=10),
    budget=st.integers(0, 12),
)
def test_drafters_keep_the_rules(
    name: str, prompt: list[int], other: list[int], blocks: list[list[int]], budget: int
) -> None:
    """Within budget, rooted in the last token, siblings distinct; state follows the tokens only."""
    drafter, twin = (lookup("drafter", DRAFTERS, name)() for _ in range(2))
    drafter.begin(other, DraftSettings())  # a history that must leave no trace
    drafter.begin(prompt, DraftSettings())
    twin.begin(prompt, DraftSettings())
    said = list(prompt)
    for block in [[], *blocks]:
        if block:
            said += block
            for each in (drafter, twin):
                each.observe(Observation(block))
        tree, same = drafter.propose(budget), twin.propose(budget)
        assert (tree is None) == (same is None)
        if tree is None or same is None:
            continue
        assert tree.tokens.tolist() == same.tokens.tolist()
        assert 1 < len(tree) <= budget + 1
        assert tree.tokens[0] == said[-1]
        edges = list(zip(tree.parent.tolist(), tree.tokens.tolist(), strict=True))
        assert len(set(edges)) == len(edges)


@pytest.mark.parametrize(
    ("tokens", "parents", "usable"),
    [
        ([7, 1, 2], [-1, 0, 0], True),
        ([7, 1, 2, 3], [-1, 0, 1, 2], False),  # over the budget of two
        ([7], [-1], False),  # nothing proposed
        ([6, 1], [-1, 0], False),  # another root
        ([7, 1], [-1, -1], False),  # two roots
        ([7, VOCAB], [-1, 0], False),
        ([7, -1], [-1, 0], False),
    ],
)
def test_proposals_that_cannot_be_verified_are_dropped(
    tokens: list[int], parents: list[int], usable: bool
) -> None:
    tree = Tree(np.array(tokens), np.array(parents))
    assert is_usable(tree, 7, 2, VOCAB) == usable
