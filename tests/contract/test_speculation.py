"""What the loop promises with any drafters: they change the time, never the answer."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.answers import (
    ALL,
    CONTEXT,
    FACTORIES,
    FLAT,
    OPTIONS,
    STEEP,
    VOCAB,
    decode,
    drawn_source,
    joint_law,
    open_source,
    prompts,
    tv_ratio,
)
from tiny.toy_backend import (
    ToyBackend,
    adversary,
    hashed,
    oracle,
    oracle_trees,
    random_trees,
    scripted,
    toy_source,
    toy_spec,
)

from quickdraft.device_profiles.curve import Curve
from quickdraft.drafters.base import DrafterSource
from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError
from quickdraft.runtime.backends.base import CancelToken
from quickdraft.runtime.drafting import Drafting
from quickdraft.runtime.engine import Decoder
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.metrics import StepRecord
from quickdraft.runtime.plan import Emission, Plan
from quickdraft.runtime.session import Session


def records(emissions: list[Emission]) -> list[StepRecord]:
    return [emission.record for emission in emissions if emission.record]


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o) or "plain")
@settings(max_examples=4, deadline=None)
@given(
    prompt=prompts,
    seed=st.integers(0, 99),
    budget=st.sampled_from([1, 2, 4, 8, 13, None]),
    curve=st.sampled_from([FLAT, STEEP]),
)
def test_an_answer_does_not_depend_on_the_drafter(
    name: str,
    options: dict[str, object],
    prompt: list[int],
    seed: int,
    budget: int | None,
    curve: Curve,
) -> None:
    """Greedy, and sampled with a seed: token for token (S5)."""
    logits = hashed(VOCAB)
    base = GenerationConfig(max_new_tokens=40, logprobs=2, **options)
    plain, reference = decode(logits, prompt, base, eos_ids=(2,))
    drafted = base.replace(num_draft_tokens=budget)
    sources = FACTORIES[name](logits, seed)
    tokens, emissions = decode(logits, prompt, drafted, sources, curve=curve, eos_ids=(2,))
    steps = records(emissions)
    assert sum(step.emitted for step in steps) == len(tokens)
    assert all(step.accepted <= step.drafted <= (budget or 32) for step in steps)
    assert all(step.rows == step.drafted + 1 for step in steps[1:])
    if not (base.do_sample and any(step.drawn for step in steps)):
        assert tokens == plain
        told = [entry for emission in emissions for entry in emission.logprobs]
        assert told == [entry for emission in reference for entry in emission.logprobs]
    if name == "nonsense" and len(tokens) > 2 and budget is not None:
        assert sum(step.fallbacks for step in steps) > 0
        assert sum(step.drafted for step in steps) == 0


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 5}], ids=["greedy", "drawn"])
def test_an_answer_does_not_depend_on_what_a_backend_gives(options: dict[str, object]) -> None:
    """Only the largest logits, or all of them; trees, or chains only."""
    logits = hashed(VOCAB)
    config = GenerationConfig(max_new_tokens=40, top_k=4, **options)
    plain, _ = decode(logits, [1, 2, 3], config)
    for top in (0, 8, 12):
        tokens, emissions = decode(
            logits, [1, 2, 3], config, FACTORIES["all"](logits, 1), top=top, curve=FLAT
        )
        assert tokens == plain or any(step.drawn for step in records(emissions))


def test_zero_draft_tokens_decode_plainly() -> None:
    logits = hashed(VOCAB)
    config = GenerationConfig(max_new_tokens=20, num_draft_tokens=0)
    tokens, emissions = decode(logits, [1, 2, 3], config, [toy_source(oracle(logits))])
    assert len(emissions) == len(tokens) == 20
    assert not any(step.draft_s_by for step in records(emissions))


def test_an_oracle_saves_steps() -> None:
    logits = hashed(VOCAB)
    config = GenerationConfig(max_new_tokens=40, num_draft_tokens=4)
    _, emissions = decode(logits, [1, 2, 3], config, [toy_source(oracle(logits))])
    assert len(emissions) == 1 + -(-39 // 5)


def test_a_plan_uses_an_oracle_and_lets_an_adversary_rest() -> None:
    logits = hashed(VOCAB)
    config = GenerationConfig(max_new_tokens=70)
    right = [toy_source(oracle(logits))]
    _, emissions = decode(logits, [1, 2, 3], config, right, curve=FLAT)
    assert len(emissions) < 20
    assert records(emissions)[-1].decision is not None
    wrong = [toy_source(lambda tokens, budget: Tree.chain([tokens[-1], *[15] * budget]))]
    _, emissions = decode(scripted(VOCAB, 3, [1, 2, 3] * 30), [1, 2, 3], config, wrong, curve=STEEP)
    assert sum(step.drafted for step in records(emissions)[20:]) < 10


def test_prompt_lookup_saves_steps_on_text_that_repeats() -> None:
    script = [3, 1, 4, 1, 5, 9, 2] * 9
    config = GenerationConfig(max_new_tokens=60, num_draft_tokens=8)
    logits = scripted(VOCAB, 2, script)
    sources = [open_source("prompt_lookup", logits)]
    tokens, emissions = decode(logits, [7, 8], config, sources)
    assert tokens == script[:60]
    # Two words of the second period are needed; then every draft holds.
    assert len(emissions) < 9 + 2 * (60 - 9) // 9
    steps = records(emissions)
    assert sum(step.accepted for step in steps) == 60 - len(emissions)
    by = [step.by_drafter.get("prompt_lookup", (0, 0)) for step in steps]
    assert sum(accepted for _, accepted in by) == sum(step.accepted for step in steps)


def _sources(name: str, vocab: int) -> list[DrafterSource]:
    logits = hashed(vocab, markov=0.5, scale=1.2)
    toys = {
        "random": lambda: [toy_source(random_trees(1, vocab))],
        "oracle_trees": lambda: [toy_source(oracle_trees(logits, 2))],
        "drawn": lambda: [drawn_source(1, 1, vocab)],
        "drawn trees": lambda: [drawn_source(1, 3, vocab)],
        "drawn and chosen": lambda: [
            toy_source(oracle(logits)),
            drawn_source(2, 2, vocab),
            toy_source(random_trees(3, vocab)),
            drawn_source(4, 1, vocab),
        ],
    }
    return toys[name]() if name in toys else [open_source(name, logits, vocab)]


@pytest.mark.parametrize(
    "name", [*ALL, "random", "oracle_trees", "drawn", "drawn trees", "drawn and chosen"]
)
@pytest.mark.parametrize("chains", [False, True], ids=["trees", "chains"])
def test_sampled_sequences_have_the_exact_distribution(name: str, chains: bool) -> None:
    """Joint law of three tokens over a small vocabulary against the enumerated one (S1, S4)."""
    vocab, draws = 4, 2_000
    logits = hashed(vocab, markov=0.5, scale=1.2)
    config = GenerationConfig(
        temperature=1.1, top_k=0, top_p=0.97, repetition_penalty=1.15, max_new_tokens=3
    )
    backend = ToyBackend(logits, toy_spec(vocab, CONTEXT))
    backend.trees = "rounded" if chains else "exact"
    prompt = [0, 1, 0, 1, 0]
    exact = joint_law(logits, prompt, config, vocab)
    counts = np.zeros(vocab**3)
    session = Session(backend, Drafting(_sources(name, vocab), backend, FLAT))
    for seed in range(draws):
        run = Decoder(backend, session, Plan(config.replace(seed=seed))).run(prompt)
        tokens = [token for emission in run for token in emission.tokens]
        counts[np.ravel_multi_index(tokens, (vocab,) * 3)] += 1
    assert tv_ratio(counts, exact) < 1.5


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
    config = GenerationConfig(max_new_tokens=limit, num_draft_tokens=8)

    def run(*sources: DrafterSource) -> tuple[list[int], str | None]:
        left = [stop]

        def ends_text(token: int) -> bool:
            left[0] -= 1
            return left[0] == 0

        tokens, emissions = decode(
            logits, prompt, config, sources, eos_ids=(eos,), ends_text=ends_text
        )
        return tokens, emissions[-1].finish_reason

    propose = oracle_trees(logits, seed) if tree else oracle(logits)
    assert run(toy_source(propose)) == run()


@pytest.mark.parametrize("budget", [1, 8, 64])
def test_the_context_limit_ends_an_answer(budget: int) -> None:
    logits = hashed(VOCAB)
    prompt = [1] * 80
    config = GenerationConfig(max_new_tokens=1000, num_draft_tokens=budget)
    drafted, emissions = decode(logits, prompt, config, [toy_source(oracle(logits))])
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
    source = toy_source(oracle_trees(logits, 1) if tree else adversary(logits))
    session = Session(backend, Drafting([source], backend))
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
    session = Session(backend, Drafting([toy_source(oracle(logits))], backend))

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
    session = Session(backend, Drafting(FACTORIES["all"](logits, 0), backend, FLAT))
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


def test_a_drafter_that_fails_rests(caplog: pytest.LogCaptureFixture) -> None:
    logits = hashed(VOCAB)

    def fail(tokens: list[int], budget: int) -> Tree | None:
        raise BackendError("the draft model is gone")

    sources = [toy_source(fail, name="broken"), toy_source(oracle(logits))]
    config = GenerationConfig(max_new_tokens=20, num_draft_tokens=4)
    tokens, emissions = decode(logits, [1, 2, 3], config, sources)
    assert tokens == decode(logits, [1, 2, 3], config)[0]
    assert len(emissions) < 10
    assert caplog.text.count("the drafter 'broken' failed") == 1


def test_conversations_in_threads_share_what_is_learnt() -> None:
    logits = hashed(VOCAB)
    config = GenerationConfig(max_new_tokens=60)
    backend = ToyBackend(logits, toy_spec(VOCAB, CONTEXT))
    drafting = Drafting(FACTORIES["several"](logits, 3), backend, FLAT)
    prompts = [[i, i + 1, i] for i in range(4)]
    answers: list[list[int]] = [[] for _ in prompts]

    def answer(i: int) -> None:
        for _ in range(3):
            run = Decoder(backend, Session(backend, drafting), Plan(config)).run(prompts[i])
            answers[i] = [token for emission in run for token in emission.tokens]

    threads = [threading.Thread(target=answer, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [decode(logits, prompt, config)[0] for prompt in prompts]
