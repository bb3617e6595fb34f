"""Samplers and processors against their definitions, written the slow way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny.toy_backend import top_tokens

from quickdraft.errors import BackendError, OptionError
from quickdraft.runtime import processors
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.sampling import (
    Distribution,
    largest,
    process,
    process_top,
    token_logprob,
    token_logprob_top,
    top_decides,
    top_is_tied,
)

NONE = np.zeros(0, np.int64)

rows = arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.floats(-20, 20, width=32) | st.sampled_from([0.0, 1.0, -math.inf]),
).filter(lambda row: bool(np.isfinite(row).any()))


def softmax(logits: np.ndarray) -> list[float]:
    top = max(float(x) for x in logits)
    weights = [math.exp(float(x) - top) for x in logits]
    return [w / sum(weights) for w in weights]


def dense(found: Distribution, size: int) -> np.ndarray:
    p = np.zeros(size)
    p[found.ids] = found.probabilities
    assert (np.diff(found.ids) > 0).all()
    assert abs(p.sum() - 1) < 1e-9
    return p


def law(logits: np.ndarray, **options: object) -> np.ndarray:
    config = GenerationConfig(**{"temperature": 1.0, "top_k": 0, **options})
    before = logits.copy()
    found = process(logits, NONE, 0, config)
    assert np.array_equal(logits, before)
    return dense(found, len(logits))


def renormalised(p: list[float], kept: set[int]) -> list[float]:
    total = sum(p[i] for i in kept)
    return [p[i] / total if i in kept else 0.0 for i in range(len(p))]


@given(rows, st.floats(0.1, 4))
def test_temperature(logits: np.ndarray, temperature: float) -> None:
    expected = softmax(logits.astype(np.float64) / temperature)
    assert np.allclose(law(logits, temperature=temperature), expected, atol=1e-7)


@given(rows, st.integers(1, 45))
def test_top_k_keeps_the_k_largest_and_their_equals(logits: np.ndarray, k: int) -> None:
    kth = sorted(logits.tolist(), reverse=True)[min(k, len(logits)) - 1]
    kept = {i for i, x in enumerate(logits) if x >= kth}
    if k == 1:
        kept = {int(np.argmax(logits))}
    expected = renormalised(softmax(logits), kept)
    assert np.allclose(law(logits, top_k=k), expected, atol=1e-7)


@given(rows, st.floats(0.01, 0.99), st.sampled_from([0, 5]))
def test_top_p_keeps_the_smallest_set_that_holds_it(
    logits: np.ndarray, top_p: float, top_k: int
) -> None:
    p = softmax(logits)
    if top_k:
        p = law(logits, top_k=top_k).tolist()
    kept, mass = set(), 0.0
    for i in sorted(range(len(p)), key=lambda i: (-p[i], i)):
        if abs(mass - top_p) < 1e-6:
            return  # a tie that rounding decides
        if mass < top_p:
            kept.add(i)
        mass += p[i]
    assert np.allclose(law(logits, top_p=top_p, top_k=top_k), renormalised(p, kept), atol=1e-7)


@given(rows, st.floats(0.01, 1))
def test_min_p_keeps_what_is_near_the_top(logits: np.ndarray, min_p: float) -> None:
    p = softmax(logits)
    if any(abs(x - min_p * max(p)) < 1e-9 for x in p if x != max(p)):
        return
    kept = {i for i, x in enumerate(p) if x >= min_p * max(p)}
    assert np.allclose(law(logits, min_p=min_p), renormalised(p, kept), atol=1e-7)


@given(rows, st.floats(0.01, 0.99))
def test_typical_p_keeps_what_is_nearest_to_the_entropy(logits: np.ndarray, mass: float) -> None:
    p = softmax(logits)
    entropy = -sum(x * math.log(x) for x in p if x > 0)
    distance = [abs(-math.log(x) - entropy) if x > 0 else math.inf for x in p]
    order = sorted(range(len(p)), key=lambda i: distance[i])
    total, last = 0.0, order[-1]
    for i in order:
        total += p[i]
        if abs(total - mass) < 1e-6:
            return
        if total >= mass:
            last = i
            break
    kept = {i for i in range(len(p)) if distance[i] <= distance[last] + 1e-9}
    near = {i for i in range(len(p)) if abs(distance[i] - distance[last]) < 1e-6} - {last}
    if near:
        return
    assert np.allclose(law(logits, typical_p=mass), renormalised(p, kept), atol=1e-6)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([1, 7, 50, 300]), st.booleans())
def test_the_largest_of_a_large_vocabulary(seed: int, k: int, coarse: bool) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, 20_011).astype(np.float32)
    if coarse:
        logits = np.round(logits)
    kth = np.sort(logits)[-k]
    assert largest(logits, k).tolist() == np.flatnonzero(logits >= kth).tolist()


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([0.3, 0.9, 0.9999, 1e-6]))
def test_top_p_of_a_large_vocabulary(seed: int, top_p: float) -> None:
    logits = np.random.default_rng(seed).normal(0, 2, 20_011).astype(np.float32)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    kept = order[: int((np.cumsum(p[order]) - p[order] < top_p).sum())]
    expected = np.zeros(len(p))
    expected[kept] = p[kept] / p[kept].sum()
    assert np.abs(law(logits, top_p=top_p) - expected).sum() < 1e-6


contexts = st.lists(st.integers(0, 7), min_size=1, max_size=40)


@given(contexts, st.floats(0.2, 5), st.integers(0, 99))
def test_repetition_penalty(context: list[int], penalty: float, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 2, 8).astype(np.float32)
    expected = [
        x if i not in context else (x * penalty if x < 0 else x / penalty)
        for i, x in enumerate(logits.tolist())
    ]
    found = processors.penalise_repetition(logits, np.array(context), penalty)
    assert np.allclose(found, expected, rtol=1e-5)


@given(contexts, st.floats(-2, 2), st.floats(-2, 2))
def test_presence_and_frequency_penalties_count_the_answer(
    answer: list[int], presence: float, frequency: float
) -> None:
    expected = [-(frequency * answer.count(i) + presence * (i in answer)) for i in range(8)]
    found = processors.penalise_counts(
        np.zeros(8, np.float32), np.array(answer), presence, frequency
    )
    assert np.allclose(found, expected, atol=1e-5)


@given(contexts, st.integers(1, 5))
def test_no_repeat_ngram(context: list[int], size: int) -> None:
    grams = {tuple(context[i : i + size]) for i in range(len(context) - size + 1)}
    tail = tuple(context[len(context) - size + 1 :]) if size > 1 else ()
    expected = [
        -math.inf if (*tail, t) in grams and len(tail) == size - 1 else 0.0 for t in range(8)
    ]
    found = processors.forbid_ngrams(np.zeros(8, np.float32), np.array(context), size)
    assert found.tolist() == expected


def test_the_minimum_length_masks_the_end_of_text() -> None:
    logits = np.array([5, 1, 2], np.float32)
    config = GenerationConfig(min_new_tokens=2)
    context = np.array([1, 1, 1])
    assert process(logits, context, 1, config, (0,)).mode() == 2
    assert process(logits, context, 2, config, (0,)).mode() == 0


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.5}, {"typical_p": 0.5}])
def test_the_least_temperature_takes_the_likeliest(options: dict[str, float]) -> None:
    found = law(np.array([1, 3, 2], np.float32), temperature=5e-324, **options)
    assert found.tolist() == [0, 1, 0]


def test_bias_moves_a_token_to_the_front() -> None:
    logits = np.array([5, 1, 2], np.float32)
    assert process(logits, NONE, 0, GenerationConfig(logit_bias={1: 10})).mode() == 1


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"repetition_penalty": 2.0}])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1, math.nan, 2], "logit of nan"),
        ([-math.inf] * 3, "no finite logit"),
        ([1, math.inf, 2], "logit of inf"),
    ],
)
def test_unsound_logits_are_an_error(
    options: dict[str, float], row: list[float], message: str
) -> None:
    config = GenerationConfig(**options)
    with pytest.raises(BackendError, match=message):
        process(np.array(row, np.float32), np.array([0]), 0, config)


def test_equal_logits_are_fine() -> None:
    logits = np.zeros(6, np.float32)
    assert process(logits, NONE, 0, GenerationConfig()).mode() == 0
    assert np.allclose(law(logits, top_k=3, top_p=0.9, typical_p=0.9), law(logits, top_k=3))


def test_options_that_leave_no_token_are_an_error() -> None:
    config = GenerationConfig(no_repeat_ngram_size=1)
    with pytest.raises(OptionError, match="leave no token"):
        process(np.zeros(3, np.float32), np.array([0, 1, 2]), 0, config)


def test_log_probabilities_are_the_models_own() -> None:
    logits = np.array([1, 3, 2, -1], np.float32)
    p = softmax(logits)
    found = token_logprob(logits, 0, 2)
    assert math.isclose(found.logprob, math.log(p[0]), abs_tol=1e-6)
    assert [token for token, _ in found.top] == [1, 2]
    assert math.isclose(found.top[0][1], math.log(p[1]), abs_tol=1e-6)


configs = st.builds(
    GenerationConfig,
    temperature=st.sampled_from([0.0, 0.01, 0.7, 1.0, 3.0]),
    top_k=st.integers(0, 12),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    min_p=st.sampled_from([0.0, 0.1]),
    typical_p=st.sampled_from([1.0, 0.8]),
)


@settings(max_examples=400)
@given(rows, configs, st.integers(1, 12))
def test_the_largest_logits_decide_as_all_do(
    logits: np.ndarray, config: GenerationConfig, count: int
) -> None:
    count = min(count, len(logits))
    top = top_tokens(logits[None], count)
    if not top_decides(config, 0, count):
        assert config.do_sample
        assert config.top_k == 0 or config.top_k >= count
        return
    expected = process(logits, NONE, 0, config)
    if top_is_tied(top, config):
        assert np.isin(expected.ids, np.flatnonzero(logits >= top.values[0, -1])).all()
        return
    found = process_top(top, 0, config)
    assert found.ids.tobytes() == expected.ids.tobytes()
    assert found.probabilities.tobytes() == expected.probabilities.tobytes()


@pytest.mark.parametrize(
    ("options", "generated", "top", "enough"),
    [
        ({}, 0, 1, True),
        ({}, 0, 0, False),
        ({"temperature": 1.0, "top_k": 8}, 0, 8, False),
        ({"temperature": 1.0, "top_k": 7}, 0, 8, True),
        ({"temperature": 1.0, "top_k": 0}, 0, 8, False),
        ({"temperature": 1.0, "top_k": 1}, 0, 1, True),
        ({"logprobs": 9}, 0, 8, False),
        ({"logprobs": 8}, 0, 8, True),
        ({"repetition_penalty": 1.1}, 0, 8, False),
        ({"logit_bias": {1: 1.0}}, 0, 8, False),
        ({"min_new_tokens": 3}, 2, 8, False),
        ({"min_new_tokens": 3}, 3, 8, True),
    ],
)
def test_when_the_largest_logits_are_enough(
    options: dict[str, object], generated: int, top: int, enough: bool
) -> None:
    assert top_decides(GenerationConfig(**options), generated, top) is enough


def test_equal_logits_beyond_the_largest_are_noticed() -> None:
    config = GenerationConfig(temperature=1.0, top_k=3)
    assert top_is_tied(top_tokens(np.float32([[5, 4, 3, 3, 3, 1]]), 4), config)
    assert not top_is_tied(top_tokens(np.float32([[5, 4, 3, 3, 2, 1]]), 5), config)
    assert not top_is_tied(top_tokens(np.zeros((1, 6), np.float32), 4), GenerationConfig())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1, math.nan, 2], "logit of nan"),
        ([-math.inf] * 3, "no finite logit"),
        ([1, math.inf, 2], "logit of inf"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "top_k": 1}])
def test_unsound_largest_logits_are_an_error(
    options: dict[str, float], row: list[float], message: str
) -> None:
    with np.errstate(invalid="ignore"):
        top = top_tokens(np.array([row], np.float32), 2)
    with pytest.raises(BackendError, match=message):
        process_top(top, 0, GenerationConfig(**options))


def test_log_probabilities_from_the_largest_logits() -> None:
    logits = np.random.default_rng(1).normal(0, 3, (2, 40)).astype(np.float32)
    logits[1, 7] = logits[1, 3] = 9
    top = top_tokens(logits, 8)
    for row in range(2):
        token = int(top.ids[row, 4])
        found = token_logprob_top(top, row, token, 5)
        expected = token_logprob(logits[row], token, 5)
        assert [i for i, _ in found.top] == [i for i, _ in expected.top]
        assert np.allclose([p for _, p in found.top], [p for _, p in expected.top], atol=1e-5)
        assert found == token_logprob_top(top, row, token, 5, logits[row])
    rare = int(np.argmin(logits[0]))
    ours = token_logprob_top(top, 0, rare, 5, logits[0]).logprob
    assert math.isclose(ours, token_logprob(logits[0], rare, 5).logprob, abs_tol=1e-5)


@pytest.mark.parametrize("vocab", [32, 512])
def test_draws_follow_the_distribution(vocab: int) -> None:
    """S1: total variation over its expected value."""
    rng = np.random.default_rng(3)
    for seed in range(3):
        logits = np.random.default_rng(seed).normal(0, 2, vocab).astype(np.float32)
        found = process(logits, NONE, 0, GenerationConfig(temperature=0.8, top_k=0, top_p=0.95))
        counts = np.zeros(vocab)
        draws = 20_000
        for _ in range(draws):
            counts[found.draw(rng)] += 1
        p = dense(found, vocab)
        tv = 0.5 * np.abs(counts / draws - p).sum()
        expected = 0.5 * np.sqrt(2 * p * (1 - p) / (np.pi * draws)).sum()
        assert tv / expected < 1.5
