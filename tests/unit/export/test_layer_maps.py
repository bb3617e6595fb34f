"""Layer maps against the tables of the paper."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraft.export.layer_maps import kept_layers, layer_map, pruned_sources


def times(*runs: tuple[range, int]) -> tuple[int, ...]:
    return tuple(layer for layers, count in runs for layer in layers for _ in range(count))


@pytest.mark.parametrize(
    ("targets", "auxiliaries", "expected"),
    [
        (28, 20, times((range(8), 2), (range(8, 20), 1))),
        (28, 16, times((range(12), 2), (range(12, 16), 1))),
        (36, 28, times((range(8), 2), (range(8, 28), 1))),
        (36, 20, times((range(16), 2), (range(16, 20), 1))),
        (36, 16, times((range(4), 3), (range(4, 16), 2))),
        (28, 14, times((range(14), 2))),
        (28, 7, times((range(7), 4))),
        (32, 30, times((range(2), 2), (range(2, 30), 1))),
        (28, 24, times((range(4), 2), (range(4, 24), 1))),
        (3, 3, (0, 1, 2)),
    ],
)
def test_tables_of_the_paper(targets: int, auxiliaries: int, expected: tuple[int, ...]) -> None:
    assert layer_map(targets, auxiliaries) == expected


@given(targets=st.integers(1, 80), auxiliaries=st.integers(1, 80))
def test_every_layer_reads_one_in_order(targets: int, auxiliaries: int) -> None:
    found = layer_map(targets, auxiliaries)
    assert len(found) == targets
    assert list(found) == sorted(found)
    assert found[0] == 0
    if auxiliaries <= targets:
        counts = Counter(found)
        assert set(counts) == set(range(auxiliaries))
        assert max(counts.values()) - min(counts.values()) <= 1
    elif targets > 1:
        assert found[-1] == auxiliaries - 1


def test_pruned_auxiliaries_of_the_paper() -> None:
    for fraction, sizes in ((0.75, (21, 27)), (0.5, (14, 18)), (0.25, (7, 9))):
        assert tuple(len(kept_layers(count, fraction)) for count in (28, 36)) == sizes
    assert kept_layers(8, 0.75) == (0, 1, 2, 4, 5, 6)
    assert kept_layers(8, 0.5, "first") == (0, 1, 2, 3)


@given(
    count=st.integers(4, 80),
    fraction=st.sampled_from([0.25, 0.5, 0.75]),
    wanted=st.lists(st.integers(0, 79), max_size=3),
)
def test_graded_auxiliaries(count: int, fraction: float, wanted: list[int]) -> None:
    wanted = [layer for layer in wanted if layer < count]
    kept = kept_layers(count, fraction, "graded", wanted)
    assert len(kept) == len(kept_layers(count, fraction))
    assert list(kept) == sorted(set(kept))
    assert kept[0] >= 0
    assert kept[-1] < count
    assert kept[:3] == (0, 1, 2)[: len(kept)]
    if len(kept) >= 6:
        assert set(wanted) <= set(kept)


def test_a_wanted_layer_takes_the_place_of_its_neighbour() -> None:
    assert kept_layers(30, 0.25, "graded") == (0, 1, 2, 7, 11, 16, 21, 25)
    assert kept_layers(30, 0.25, "graded", [12]) == (0, 1, 2, 7, 12, 16, 21, 25)


@pytest.mark.parametrize("fraction", [0.5, 0.25])
def test_pruned_maps_of_keys_and_values_follow_the_rule(fraction: float) -> None:
    keep = kept_layers(28, fraction)
    expected = tuple((source,) for source in layer_map(28, len(keep)))
    assert pruned_sources("kv", 28, keep, len(keep) - 1) == expected


def test_a_dropped_layer_reads_the_one_below_at_three_quarters() -> None:
    keep = kept_layers(28, 0.75)
    sources = pruned_sources("kv", 28, keep, len(keep) - 1)
    for block in range(7):
        assert sources[4 * block + 3] == sources[4 * block + 2]


@given(count=st.integers(2, 40), fraction=st.sampled_from([0.25, 0.5, 0.75, 1.0]), data=st.data())
def test_streams_are_those_before_the_layer(
    count: int, fraction: float, data: st.DataObject
) -> None:
    keep = kept_layers(count, fraction, data.draw(st.sampled_from(["graded", "first", "spread"])))
    computed = data.draw(st.integers(0, len(keep)))
    for layer, (source,) in enumerate(pruned_sources("hidden", count, keep, computed)):
        assert source <= computed
        # A layer that is kept and reached reads what it would read itself.
        if layer in keep and keep.index(layer) <= computed:
            assert source == keep.index(layer)
