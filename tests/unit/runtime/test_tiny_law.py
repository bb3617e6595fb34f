"""The tiny model of `verify`, its law, and the distance of counts from a law."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraft.drafters.tree import Tree
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.tiny_law import (
    VOCABULARY,
    TinyModel,
    law_of,
    mean_deviation,
    ratio_limit,
    variation_ratio,
)

PROMPT = (0, 1, 2, 3, 0, 1)


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    p = np.exp(logits.astype(np.float64) / temperature)
    return p / p.sum()


def test_a_row_sees_its_own_path_and_nothing_else() -> None:
    model = TinyModel()
    cache = model.new_cache()
    model.step(Tree.chain(PROMPT), cache)
    cache.commit(range(len(PROMPT)))
    tree = Tree(np.array([2, 0, 3, 1, 1]), np.array([-1, 0, 0, 1, 2]))
    logits = model.step(tree, cache).logits
    paths = [(2,), (2, 0), (2, 3), (2, 0, 1), (2, 3, 1)]
    for row, path in zip(logits, paths, strict=True):
        assert (row == model.logits_after((*PROMPT, *path))).all()
    assert not (logits[3] == logits[4]).all()
    cache.commit([0, 2, 4])
    (row,) = model.step(Tree.chain([0]), cache).logits
    assert (row == model.logits_after((*PROMPT, 2, 3, 1, 0))).all()


def test_models_of_two_seeds_agree_on_much_and_not_on_all() -> None:
    one, other = TinyModel(0), TinyModel(1)
    contexts = [tuple(np.random.default_rng(i).integers(0, 4, 8).tolist()) for i in range(200)]
    same = [np.argmax(one.logits_after(c)) == np.argmax(other.logits_after(c)) for c in contexts]
    assert 0.4 < np.mean(same) < 0.95


@pytest.mark.parametrize("chunk", [1, 3, 256])
def test_the_law_is_the_product_of_softmaxes(chunk: int) -> None:
    model = TinyModel()
    config = GenerationConfig(temperature=0.9, top_k=0, prefill_chunk_size=chunk)
    law = law_of(model, PROMPT, 3, config)
    assert len(law) == VOCABULARY**3
    assert sum(law.values()) == pytest.approx(1)
    for answer, probability in law.items():
        expected = math.prod(
            softmax(model.logits_after((*PROMPT, *answer[:i])), 0.9)[token]
            for i, token in enumerate(answer)
        )
        assert probability == pytest.approx(expected)


def test_the_law_holds_only_what_the_options_leave() -> None:
    law = law_of(TinyModel(), PROMPT, 2, GenerationConfig(temperature=1.0, top_k=2))
    assert len(law) == 4
    assert sum(law.values()) == pytest.approx(1)


@given(draws=st.integers(1, 60), p=st.floats(0, 1))
def test_the_mean_deviation_of_a_binomial(draws: int, p: float) -> None:
    terms = (
        math.comb(draws, k) * p**k * (1 - p) ** (draws - k) * abs(k - draws * p)
        for k in range(draws + 1)
    )
    assert mean_deviation(draws, p) == pytest.approx(math.fsum(terms), rel=1e-6, abs=1e-12)


def counted(law: dict[tuple[int, ...], float], draws: int, seed: int) -> Counter[tuple[int, ...]]:
    counts = np.random.default_rng(seed).multinomial(draws, np.array([*law.values()]))
    return Counter(dict(zip(law, counts.tolist(), strict=True))) + Counter()


@pytest.mark.parametrize("draws", [100, 2000])
def test_exact_draws_have_a_ratio_of_about_one(draws: int) -> None:
    law = law_of(TinyModel(), PROMPT, 3, GenerationConfig(temperature=1.1, top_k=0))
    ratios = [variation_ratio(counted(law, draws, seed), law) for seed in range(200)]
    assert np.mean(ratios) == pytest.approx(1, abs=0.05)
    assert max(ratios) < ratio_limit(draws, law) < 1.7
    assert ratio_limit(draws, law) == pytest.approx(1 + 5 * np.std(ratios), abs=0.1)


def test_other_draws_have_a_larger_one() -> None:
    config = GenerationConfig(temperature=1.1, top_k=0)
    law = law_of(TinyModel(), PROMPT, 3, config)
    warmer = law_of(TinyModel(), PROMPT, 3, config.replace(temperature=1.4))
    assert variation_ratio(counted(warmer, 4000, 0), law) > ratio_limit(4000, law)
    assert variation_ratio(Counter({(9, 9, 9): 1, **counted(law, 4000, 0)}), law) == math.inf
    certain = {(1,): 1.0}
    assert variation_ratio(Counter({(1,): 5}), certain) == ratio_limit(5, certain) == 1.0
