"""Rules of acceptance, case by case; their laws are in tests/contract/test_acceptance_rules.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pytest

from quickdraft.drafters.base import Drawn
from quickdraft.drafters.distribution import Distribution
from quickdraft.drafters.tree import Tree
from quickdraft.runtime.accept import (
    Accepted,
    Rule,
    greedy,
    judged,
    rule_for,
    sampled,
    typical,
)
from quickdraft.runtime.generation import GenerationConfig

FORK = Tree(np.array([9, 1, 3]), np.array([-1, 0, 0]))
CERTAIN = Distribution.certain(0)


def law(*probabilities: float) -> Distribution:
    return Distribution(np.arange(len(probabilities)), np.array(probabilities))


def accept(
    rule: Rule,
    tree: Tree,
    after: Mapping[tuple[int, ...], Distribution],
    laws: Mapping[int, Drawn] | None = None,
    rng: np.random.Generator | None = None,
) -> Accepted:
    """The rule's choice, given laws by path; it may ask for no others, and for none twice."""
    asked: set[tuple[int, ...]] = set()

    def distribution(path: Sequence[int]) -> Distribution:
        key = tuple(path)
        assert key not in asked
        assert len(key) == 1 or key[:-1] in asked
        asked.add(key)
        return after[key]

    return rule(tree, laws or {}, distribution, rng or np.random.default_rng(0))


def test_greedy_takes_the_path_of_the_most_likely_tokens() -> None:
    tree = Tree(np.array([0, 5, 6, 7, 8]), np.array([-1, 0, 0, 2, 2]))
    wanted = {(0,): 6, (0, 2): 8, (0, 2, 4): 1}
    after = {path: Distribution.certain(token) for path, token in wanted.items()}
    assert accept(greedy, tree, after) == Accepted([0, 2, 4], 1)


def test_chosen_tokens_are_accepted_with_the_targets_probability() -> None:
    """S2, against the sequential form of rule V3 enumerated by hand."""
    p = law(0.4, 0.3, 0.2, 0.1)
    rng = np.random.default_rng(0)
    draws = 20_000
    seen = [0, 0, 0, 0]
    for _ in range(draws):
        accepted = accept(sampled, FORK, {(0,): p, (0, 1): CERTAIN, (0, 2): CERTAIN}, rng=rng)
        first = int(FORK.tokens[accepted.path[1]]) if len(accepted.path) > 1 else accepted.token
        assert (first in (1, 3)) == (len(accepted.path) > 1)
        seen[first] += 1
    for count, chance in zip(seen, p.probabilities, strict=True):
        assert abs(count / draws - chance) < 4 * math.sqrt(chance * (1 - chance) / draws)


def test_without_drawn_tokens_the_random_numbers_are_those_of_plain_decoding() -> None:
    tree = Tree(np.array([9, 0, 1, 0, 1, 0, 1]), np.array([-1, 0, 0, 1, 1, 2, 2]))
    p = law(0.5, 0.3, 0.2)
    paths = [(0,), (0, 1), (0, 2), (0, 1, 3), (0, 1, 4), (0, 2, 5), (0, 2, 6)]
    for seed in range(50):
        rng, plain = np.random.default_rng(seed), np.random.default_rng(seed)
        accepted = accept(sampled, tree, dict.fromkeys(paths, p), rng=rng)
        decided = [*tree.tokens[accepted.path[1:]].tolist(), accepted.token]
        assert decided == [p.draw(plain) for _ in decided]
        assert rng.random() == plain.random()


def test_a_drawn_token_that_is_as_likely_to_the_target_is_always_accepted() -> None:
    p = law(0.5, 0.3, 0.2)
    for seed in range(200):
        tree = Tree.chain([9, seed % 3])
        after = {(0,): p, (0, 1): CERTAIN}
        rng = np.random.default_rng(seed)
        assert accept(sampled, tree, after, {0: Drawn(p, 1)}, rng).path == [0, 1]


def test_a_rejected_token_does_not_come_again() -> None:
    """The target never says what was drawn; of all others what the drafter left is drawn."""
    tree = Tree(np.array([9, 0, 1]), np.array([-1, 0, 0]))
    laws = {0: Drawn(law(0.5, 0.5), 2)}
    for seed in range(50):
        after = {(0,): Distribution(np.array([2, 3]), np.array([0.5, 0.5]))}
        accepted = accept(sampled, tree, after, laws, np.random.default_rng(seed))
        assert accepted.path == [0]
        assert accepted.token in (2, 3)


def test_a_token_that_its_law_cannot_give_counts_as_chosen() -> None:
    """A drafter that lies about its draws gets no more than what the target says."""
    tree = Tree.chain([9, 3])
    p = law(0.4, 0.3, 0.2, 0.1)
    rng = np.random.default_rng(0)
    after = {(0,): p, (0, 1): CERTAIN}
    laws = {0: Drawn(law(0.5, 0.5), 1)}
    accepted = sum(len(accept(sampled, tree, after, laws, rng).path) > 1 for _ in range(5_000))
    assert abs(accepted / 5_000 - 0.1) < 0.02


def test_drawing_all_there_is_leaves_the_rest_to_the_target() -> None:
    """More siblings than tokens of their law: the ones too many count as chosen."""
    tree = Tree(np.array([9, 0, 1]), np.array([-1, 0, 0]))
    after = {(0,): Distribution.certain(1), (0, 2): CERTAIN}
    accepted = accept(sampled, tree, after, {0: Drawn(Distribution.certain(0), 2)})
    assert accepted.path == [0, 2]


medusa = partial(typical, threshold=0.09, alpha=0.3)


def test_typical_accepts_what_is_likely_enough() -> None:
    """Entropy of `flat` is log 4: above 0.3 / 4 = 0.075; of `peaked` 0.22: above 0.09."""
    flat, peaked = law(0.25, 0.25, 0.25, 0.25), law(0.95, 0.05)
    fork = {(0, 1): CERTAIN, (0, 2): CERTAIN}
    assert len(accept(medusa, FORK, {(0,): flat, **fork}).path) == 2
    assert accept(medusa, FORK, {(0,): peaked, **fork}).path == [0]
    high = law(0.925, 0.075)
    assert accept(medusa, FORK, {(0,): high, **fork}).path == [0]
    lower = partial(typical, threshold=0.07, alpha=0.3)
    assert accept(lower, FORK, {(0,): high, **fork}).path == [0, 1]


def test_typical_takes_the_longest_path_then_the_likeliest() -> None:
    # 9 -> 1 -> 1, 9 -> 2, and 9 -> 0 -> 0
    tree = Tree(np.array([9, 1, 2, 0, 1, 0]), np.array([-1, 0, 0, 0, 1, 3]))
    p = law(0.3, 0.2, 0.5)
    after = {(0,): p, (0, 1): p, (0, 2): p, (0, 3): p}
    leaves = {(0, 1, 4): Distribution.certain(5), (0, 3, 5): Distribution.certain(6)}
    assert accept(medusa, tree, {**after, **leaves}) == Accepted([0, 3, 5], 6)


def test_typical_is_greedy_where_only_one_token_can_come() -> None:
    after = {(0,): Distribution.certain(3), (0, 2): Distribution.certain(4)}
    assert accept(medusa, FORK, after) == accept(greedy, FORK, after) == Accepted([0, 2], 4)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({}, greedy),
        ({"acceptance": "typical"}, greedy),
        ({"temperature": 1.0}, sampled),
    ],
)
def test_the_rule_of_an_answer(options: dict[str, object], rule: Rule) -> None:
    assert rule_for(GenerationConfig(**options)) is rule


def test_typical_acceptance_has_the_options_of_the_answer() -> None:
    config = GenerationConfig(
        temperature=1.0, acceptance="typical", posterior_threshold=0.07, posterior_alpha=0.5
    )
    rule = rule_for(config)
    assert isinstance(rule, partial)
    assert rule.func is typical
    assert rule.keywords == {"threshold": 0.07, "alpha": 0.5}


JUDGED = Tree(np.array([0, 5, 6, 7, 8]), np.array([-1, 0, 0, 2, 2]))


def test_a_judge_lets_other_tokens_pass() -> None:
    """Where the target says none of the children, the surest of them that is sure enough."""
    wanted = {(0,): 9, (0, 2): 8, (0, 2, 4): 1}
    after = {path: Distribution.certain(token) for path, token in wanted.items()}
    fine = [0.0, 0.6, 0.9, 0.99, 0.0]
    rule = partial(judged, sample=False, least=0.5, fine=fine)
    assert accept(rule, JUDGED, after) == Accepted([0, 2, 4], 1), "8 is the target's own"
    strict = partial(judged, sample=False, least=0.9, fine=fine)
    assert accept(strict, JUDGED, after) == Accepted([0], 9)
    assert accept(greedy, JUDGED, after) == Accepted([0], 9)


def test_a_judge_that_is_never_sure_changes_nothing() -> None:
    tree = Tree(np.array([9, 0, 1, 0, 1, 0, 1]), np.array([-1, 0, 0, 1, 1, 2, 2]))
    p = law(0.5, 0.3, 0.2)
    paths = [(0,), (0, 1), (0, 2), (0, 1, 3), (0, 1, 4), (0, 2, 5), (0, 2, 6)]
    after: dict[tuple[int, ...], Distribution] = dict.fromkeys(paths, p)
    laws = {0: Drawn(law(0.2, 0.8), 1)}
    never = partial(judged, sample=True, least=1.0, fine=[1.0] * 7)
    for seed in range(200):
        rngs = [np.random.default_rng(seed) for _ in range(2)]
        assert accept(never, tree, after, laws, rngs[0]) == accept(
            sampled, tree, after, laws, rngs[1]
        )


def test_judged_acceptance_has_the_options_of_the_answer() -> None:
    for temperature in (0.0, 1.0):
        config = GenerationConfig(temperature=temperature, acceptance="judge", judge_threshold=0.8)
        rule = rule_for(config)
        assert isinstance(rule, partial)
        assert rule.func is judged
        assert rule.keywords == {"sample": temperature > 0, "least": 0.8}
        root = Tree.chain([3])
        assert accept(rule, root, {(0,): Distribution.certain(2)}) == Accepted([0], 2)
