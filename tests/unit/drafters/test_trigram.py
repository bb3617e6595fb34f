"""The trigram table moves its weights as its slow twin does, and keeps to its bounds."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quickdraft.drafters.base import DrafterContext, DraftSettings, Observation
from quickdraft.drafters.tree import Tree
from quickdraft.drafters.trigram import (
    GRADES,
    WIDTH,
    Trigram,
    TrigramOptions,
    TrigramTable,
    open_trigram,
)

Weights = dict[tuple[int, int], dict[int, float]]


def learn(weights: Weights, pair: tuple[int, int], token: int, near: list[int]) -> None:
    """Slow twin: `near` are the target's best tokens."""
    options = TrigramOptions()
    row = weights.get(pair)
    if row is None:
        row = {token: options.first}
    else:
        row = {t: w * (1 - options.rate) for t, w in row.items()}
        row[token] = row.get(token, 0.0) + options.rate
    for place, other in enumerate(t for t in near if t != token):
        row[other] = row.get(other, 0.0) + options.exploration / 2**place
    scale = 1.0 / max(sum(row.values()), 1.0)
    kept = sorted(row, key=lambda t: -row[t])[:WIDTH]
    weights[pair] = {t: row[t] * scale for t in kept}


@settings(max_examples=100, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    steps=st.lists(st.permutations(range(6)), max_size=20),
)
def test_weights_move_as_the_twin_moves_them(prompt: list[int], steps: list[list[int]]) -> None:
    table, twin = TrigramTable(TrigramOptions()), Weights()
    drafter = Trigram(table, TrigramOptions())
    drafter.begin(prompt, DraftSettings())
    said = list(prompt)
    for i in range(2, len(said)):
        learn(twin, (said[i - 2], said[i - 1]), said[i], [])
    for top in steps:
        drafter.observe(Observation(top[:1], Tree.chain(said[-1:]), [0], np.array([top])))
        if len(said) > 1:
            learn(twin, (said[-2], said[-1]), top[0], top[:WIDTH])
        said.append(top[0])
    assert len(table) == len(twin)
    for pair, row in twin.items():
        found = table.successors(pair)
        assert {t: w for t, w, _ in found} == pytest.approx(row)
        assert [w for _, w, _ in found] == pytest.approx(sorted(row.values(), reverse=True))
        assert sum(row.values()) <= 1.0 + 1e-9
        assert all(0 <= grade < len(GRADES) for _, _, grade in found)


def test_the_pairs_not_seen_for_longest_are_forgotten() -> None:
    table = TrigramTable(TrigramOptions(pairs=2))
    for token in (1, 2, 1, 3):  # 1 was seen again
        table.learn((token, token), 0, [])
    assert len(table) == 2
    assert table.successors((2, 2)) == ()
    assert table.successors((1, 1))


def test_exploration_drafts_what_the_target_nearly_said() -> None:
    def drafted(exploration: float) -> list[int]:
        source = open_trigram(DrafterContext(16, 64), {"exploration": exploration})
        drafter = source.new()
        drafter.begin([1, 2], DraftSettings())
        top = np.array([[3, 4, 5, 6]])
        drafter.observe(Observation([3], Tree.chain([2]), [0], top))
        drafter.begin([1, 2], DraftSettings())
        draft = drafter.propose(4)
        assert draft is not None
        return draft.tree.tokens.tolist()

    assert drafted(0.0) == [2, 3]
    assert drafted(0.2) == [2, 3, 4, 5, 6]


def test_a_second_pass_of_a_text_is_drafted_better() -> None:
    """The adaptive table against one that never learns."""
    text = np.random.default_rng(5).integers(0, 40, 400).tolist()

    def accepted(drafter: Trigram) -> int:
        hits = 0
        drafter.begin(text[:2], DraftSettings())
        for i in range(2, len(text)):
            draft = drafter.propose(1)
            hits += draft is not None and int(draft.tree.tokens[1]) == text[i]
            drafter.observe(Observation([text[i]], Tree.chain([text[i - 1]]), [0]))
        return hits

    table = TrigramTable(TrigramOptions())
    first, second = (accepted(Trigram(table, TrigramOptions())) for _ in range(2))
    assert first < 100
    assert second > 300


def test_conversations_in_several_threads_share_a_small_table() -> None:
    source = open_trigram(DrafterContext(64, 4096), {"pairs": 50})
    failures: list[BaseException] = []

    def converse(seed: int) -> None:
        try:
            drafter = source.new()
            drafter.begin([1, 2], DraftSettings())
            for token in np.random.default_rng(seed).integers(0, 64, 2_000).tolist():
                drafter.observe(Observation([token], Tree.chain([0]), [0]))
                drafter.propose(4)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=converse, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert source.nbytes() <= 50 * 1000
