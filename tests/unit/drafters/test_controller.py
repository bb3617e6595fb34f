"""The controller in worlds with a known truth: near the best plan, never much worse than none."""

from __future__ import annotations

import random
from statistics import fmean

import numpy as np
import pytest
from tiny.worlds import CURVES, MEASURED, Kind, World, best_speed, speed

from quickdraft.device_profiles.curve import Curve
from quickdraft.drafters.acceptance import AcceptanceTable
from quickdraft.drafters.base import Draft, DrafterSource, Drawn
from quickdraft.drafters.controller import MAX_NODES, Controller, likeliest
from quickdraft.drafters.distribution import Distribution
from quickdraft.drafters.merge import Merged, cut, merge
from quickdraft.drafters.tree import Tree

SEEDS = range(4)
WORLDS = {
    "seldom right": [Kind((0.1,), (0.5,))],
    "often right": [Kind((0.7,), (0.5,))],
    "nearly always right": [Kind((0.95,), (0.5,))],
    "honest grades": [Kind((0.05, 0.3, 0.6, 0.9), (0.2, 0.4, 0.6, 0.8))],
    "lying grades": [Kind((0.9, 0.6, 0.3, 0.05), (0.2, 0.4, 0.6, 0.8))],
}


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("world", WORLDS)
def test_within_two_percent_of_the_best_plan_after_fifty_steps(curve: str, world: str) -> None:
    found = fmean(speed(World(CURVES[curve], WORLDS[world], seed)) for seed in SEEDS)
    assert found > 0.98 * best_speed(CURVES[curve], WORLDS[world], SEEDS)


@pytest.mark.parametrize("curve", CURVES)
def test_several_drafters_that_overlap(curve: str) -> None:
    """Who agrees with whom is not known beforehand, so this is harder."""
    kinds = [
        Kind((0.9, 0.3), (0.8, 0.5), offers=0.3),
        Kind((0.5, 0.1), (0.5, 0.3), length=4, width=2, offers=0.9),
        Kind((0.2,), (0.6,), length=6),
    ]
    seeds = range(16)  # four would be decided by luck
    found = fmean(speed(World(CURVES[curve], kinds, seed)) for seed in seeds)
    assert found > 0.96 * best_speed(CURVES[curve], kinds, seeds)


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_a_costly_drafter_is_asked_where_it_pays(share: float) -> None:
    cheap = Kind((0.5, 0.1), (0.5, 0.3), length=4, offers=0.5)
    per_node = share * MEASURED.at(1)
    without = fmean(speed(World(MEASURED, [cheap], seed)) for seed in SEEDS)
    good = [cheap, Kind((0.8,), (0.7,), length=12, cost=0.0, per_node=per_node)]
    assert fmean(speed(World(MEASURED, good, seed)) for seed in SEEDS) > 1.2 * without
    bad = [cheap, Kind((0.02,), (0.7,), length=12, cost=0.0, per_node=per_node)]
    assert fmean(speed(World(MEASURED, bad, seed)) for seed in SEEDS) > 0.98 * without
    world = World(MEASURED, bad)
    asked = sum("d1" in world.step().decision.asked for _ in range(300))
    assert 0 < asked < 150


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("count", [1, 5])
def test_nothing_is_ever_accepted(curve: str, count: int) -> None:
    """Total cost within 3 % of plain decoding, however sure the drafters are."""
    kinds = [Kind((0.0,) * 3, (0.4, 0.6, 0.9), length=16, width=2)] * count
    for seed in SEEDS:
        world = World(CURVES[curve], kinds, seed)
        total = 0.0
        for steps in range(1, 129):
            total += world.step().seconds
            if steps in (10, 25, 50, 128):
                assert total < 1.03 * steps * CURVES[curve].at(1)


def test_a_curve_that_says_too_much_is_put_right() -> None:
    """Measured while the machine was busy, it says that drafting never pays."""
    linear = Curve((1, 33), (MEASURED.at(1), 33 * MEASURED.at(1)))
    kinds = [Kind((0.6,), (0.5,), length=4)]
    assert speed(World(MEASURED, kinds, told=linear), 48, 0) == pytest.approx(1.0, abs=0.02)
    late = speed(World(MEASURED, kinds, told=linear), 1500, 1000)
    assert late > 0.95 * best_speed(MEASURED, kinds, SEEDS)


@pytest.mark.parametrize("curve", CURVES)
def test_after_good_times_bad_ones_cost_little(curve: str) -> None:
    kinds = [Kind((0.9,) * 3, (0.7, 0.5, 0.3)), Kind((0.5,), (0.5,), length=4)]
    world = World(CURVES[curve], kinds, mood=lambda step: float(step < 100))
    for _ in range(100):
        world.step()
    total = sum(world.step().seconds for _ in range(128))
    assert total < 1.03 * 128 * CURVES[curve].at(1)


@pytest.mark.parametrize("curve", CURVES)
def test_a_short_answer_does_not_lose_what_another_won(curve: str) -> None:
    kinds = [Kind((0.9,) * 3, (0.7, 0.5, 0.3)), Kind((0.5,), (0.5,), length=4)]
    world = World(CURVES[curve], kinds, mood=lambda step: float(step < 100))
    for _ in range(100):
        world.step()
    world.controller.begin()
    total = sum(world.step().seconds for _ in range(8))
    assert total < 1.035 * 8 * CURVES[curve].at(1)


TOLD = {
    "right": lambda seconds, plain: seconds,
    "rows too cheap": lambda seconds, plain: max(seconds / 2, plain),
    "all too cheap": lambda seconds, plain: seconds / 2,
    "single rows too dear": lambda seconds, plain: max(seconds, 1.5 * plain),
}


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("length", [12, 20])
def test_a_wrong_curve_costs_a_short_answer_little(told: str, length: int) -> None:
    """Nothing is accepted, steps vary by 4 %: within 3 %, and the first answer a probe more; or a
    step more where the curve says that rows cost nothing, which takes two probes to find out."""
    plain = MEASURED.at(1)
    rows = tuple(range(1, 34))
    curve = Curve.smoothed({n: TOLD[told](MEASURED.at(n), plain) for n in rows})
    kinds = [Kind((0.0,) * 3, (0.4, 0.6, 0.9), length=16, width=2)] * 2
    for seed in SEEDS:
        world = World(MEASURED, kinds, seed, told=curve)
        world.slowness = lambda step, rng: rng.lognormvariate(0, 0.04)
        for answer in range(6):
            world.controller.begin()
            steps = [world.step() for _ in range(length)]
            # By the true curve: what drafting cost, not what chance did.
            total = sum(MEASURED.at(step.nodes + 1) + 60e-6 for step in steps)
            probe = plain if told == "single rows too dear" else MEASURED.at(4) - plain
            assert total < 1.03 * length * plain + (probe if answer == 0 else 0.0)


def test_what_drafting_costs_besides_is_charged() -> None:
    """It lowers what drafting is known to bring, and with it the price of time."""
    worth = []
    for around in (0.0, 0.1 * MEASURED.at(1)):
        world = World(MEASURED, [Kind((0.9,), (0.5,), length=4)])
        world.around = around
        for _ in range(40):
            world.step()
        worth.append(world.controller._worth)
    assert worth[1] < 0.97 * worth[0]


def test_a_wide_step_comes_after_narrower_ones() -> None:
    """What so many rows cost is believed once half as many were measured."""
    world = World(CURVES["flat"], [Kind((0.98,), (0.9,), length=30)])
    rows = [world.step().nodes + 1 for _ in range(20)]
    assert rows[:2] == [1, 1]  # what all is measured by
    widest = 1
    for count in rows:
        assert count <= 2 * widest
        widest = max(widest, count)
    assert widest > 16


@pytest.mark.parametrize("curve", ["measured", "flat", "step"])
def test_a_text_that_begins_to_repeat_itself_is_noticed(curve: str) -> None:
    for seed in range(8):
        world = World(
            CURVES[curve],
            [Kind((0.98, 0.9), (0.5, 0.3), length=16)],
            seed,
            mood=lambda step: float(step >= 100),
        )
        for _ in range(100):
            world.step()
        nodes = [world.step().nodes for _ in range(8)]
        assert max(nodes) >= 3


@pytest.mark.parametrize("length", [10, 30])
def test_moods_that_change_are_followed(length: int) -> None:
    """Better than any fixed number of nodes."""
    rng, moods = random.Random(5), [1.0]
    while len(moods) < 2000:
        moods.append(1.15 - moods[-1] if rng.random() < 1 / length else moods[-1])

    def mood(step: int) -> float:
        return min(moods[step], 1.0)

    kinds = [Kind((0.9,), (0.5,)), Kind((0.5,), (0.5,), length=4)]
    found = speed(World(MEASURED, kinds, mood=mood), 1000)
    fixed = [
        speed(World(MEASURED, kinds, mood=mood, policy=lambda m, p, n=n: _first(m, p, n)), 1000)
        for n in (0, 2, 4, 6, 8)
    ]
    assert found > 0.99 * max(fixed)


def _first(merged: Merged, truth: list[float], count: int) -> list[int]:
    order, _, _ = likeliest(merged, truth, count)
    return order


def test_it_does_not_swing() -> None:
    """Where nothing changes the number of nodes settles."""
    world = World(MEASURED, [Kind((0.7,), (0.5,))])
    nodes = [world.step().nodes for _ in range(300)][100:]
    assert np.std(nodes) < 1.2
    assert np.mean(np.abs(np.diff(nodes))) < 0.5


def test_equal_inputs_give_equal_decisions() -> None:
    kinds = WORLDS["honest grades"] + WORLDS["lying grades"]
    twins = [World(MEASURED, kinds, 3) for _ in range(2)]
    for _ in range(100):
        first, second = (world.step() for world in twins)
        assert first == second


def test_room_is_kept() -> None:
    world = World(CURVES["flat"], [Kind((0.95,), (0.9,), length=40)])
    for room in [*range(6), 31, 32, 33, 100] * 3:
        assert world.step(room).nodes <= min(room, MAX_NODES)


def test_context_is_taken_into_account() -> None:
    """Where every row reads a long context, fewer are worth it."""
    curve = Curve((1, 33), (0.010, 0.0125), (1e-6, 33e-6))
    source = DrafterSource("d", (0.6,), lambda: None)
    chain = Draft(Tree.chain([0, *range(1, 20)]), [0] * 20)

    def nodes(context: int) -> int:
        controller = Controller(curve, [source], AcceptanceTable([(0.6,)]))
        merged = merge(0, [chain], controller.table.rate)
        return len(controller.choose(merged, 32, context).nodes)

    assert nodes(0) > nodes(2_000) > nodes(200_000)


def test_drawn_nodes_are_kept_whatever_they_promise() -> None:
    law = Drawn(Distribution(np.arange(4), np.full(4, 0.25)), 2)
    tree = Tree(np.array([0, 1, 2, 3]), np.array([-1, 0, 0, 1]))
    sure = Draft(Tree.chain([0, 3, 3, 3]), [0] * 4)
    for prior in (0.01, 0.99):
        controller = Controller(
            Curve((1, 33), (0.01, 3.0)),
            [DrafterSource(n, (p,), lambda: None) for n, p in (("a", 0.9), ("b", prior))],
            AcceptanceTable([(0.9,), (prior,)]),
        )
        merged = merge(0, [sure, Draft(tree, [0] * 4, {0: law})], controller.table.rate)
        decision = controller.choose(merged, 32, 0)
        assert merged.drawn() <= set(decision.nodes)
        assert merged.drawn() <= set(controller.fixed(merged, 2).nodes)
        assert cut(merged, decision.nodes).laws == {0: law}


def test_a_fixed_number_needs_no_curve() -> None:
    controller = Controller(None, [DrafterSource("d", (0.6,), lambda: None)], _table())
    assert controller.ask(4) == [0]
    merged = merge(0, [Draft(Tree.chain([0, 1, 2, 3]), [0] * 4)], controller.table.rate)
    decision = controller.fixed(merged, 2)
    assert decision.nodes == (1, 2)
    assert decision.asked == ("d",)
    assert controller.choose(merged, 3, 0).nodes == (1, 2, 3)
    before = controller.table.rate(0, 0, 1)
    controller.learn(merged, [1, 2, 9], decision, 0.01, {"d": 1e-5})
    assert controller.table.rate(0, 0, 1) > before


def _table() -> AcceptanceTable:
    return AcceptanceTable([(0.6,)])


def test_what_was_not_verified_teaches_too() -> None:
    controller = Controller(MEASURED, [DrafterSource("d", (0.5,), lambda: None)], _table())
    merged = merge(0, [Draft(Tree.chain([0, 1, 2]), [0] * 3)], controller.table.rate)
    nothing = controller.fixed(merged, 0)
    before = controller.table.rate(0, 0, 1)
    controller.learn(merged, [1], nothing, 0.0174, {"d": 1e-5})
    assert controller.table.rate(0, 0, 1) > before


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan"), 1e9])
def test_impossible_times_do_no_harm(seconds: float) -> None:
    world = World(MEASURED, WORLDS["often right"])
    world.slowness = lambda step, rng: seconds if step % 7 == 0 else 1.0
    nodes = [world.step().nodes for _ in range(100)]
    assert 3 <= np.mean(nodes[50:]) <= 6
