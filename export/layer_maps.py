"""Which layers an auxiliary model keeps, and which of its layers each target layer is read from.

Horton et al. 2024, arXiv 2410.08391.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

Features = Literal["hidden", "kv"]
Layout = Literal["graded", "first", "spread"]
Sources = tuple[tuple[int, ...], ...]

FRACTIONS: Mapping[float, tuple[int, ...]] = {
    0.25: (0,),
    0.5: (0, 2),
    0.75: (0, 1, 2),
    1.0: (0, 1, 2, 3),
}
"""Which of four layers stay, by the share of them."""

_BOTTOM = 3


def kept_layers(
    count: int, fraction: float, layout: Layout = "spread", wanted: Sequence[int] = ()
) -> tuple[int, ...]:
    """The layers of a pruned auxiliary.

    fraction: a key of FRACTIONS. layout: `spread` keeps layers at regular intervals, as the paper
    does. Ours: `first` as many from the bottom; `graded` the first three, in which a token becomes
    a word, and the others at regular intervals, those of `wanted` among them where there is room.
    """
    spread = tuple(layer for layer in range(count) if layer % 4 in FRACTIONS[fraction])
    total = len(spread)
    if layout == "spread" or total == count:
        return spread
    if layout == "first" or total <= _BOTTOM:
        return tuple(range(total))
    step = (count - _BOTTOM + 1) / (total - _BOTTOM + 1)
    kept = [round(_BOTTOM - 1 + step * number) for number in range(1, total - _BOTTOM + 1)]
    for layer in sorted({layer for layer in wanted if layer >= _BOTTOM} - set(kept)):
        near = min((k for k in kept if k not in wanted), key=lambda k: abs(k - layer), default=None)
        if near is not None:
            kept[kept.index(near)] = layer
    return (*range(_BOTTOM), *sorted(kept))


def layer_map(targets: int, auxiliaries: int) -> tuple[int, ...]:
    """The auxiliary layer that each target layer reads: the first `targets % auxiliaries` of them
    serve one target layer more than the others, as in the paper.

    Where the auxiliary has more layers than the target, which the paper has not, they are spread
    evenly.
    """
    if auxiliaries > targets:
        steps = max(1, targets - 1)
        return tuple(round(layer * (auxiliaries - 1) / steps) for layer in range(targets))
    each, more = divmod(targets, auxiliaries)
    counts = [each + (index < more) for index in range(auxiliaries)]
    return tuple(index for index, count in enumerate(counts) for _ in range(count))


def pruned_sources(features: Features, count: int, keep: Sequence[int], computed: int) -> Sources:
    """What each of `count` target layers reads of an auxiliary of the layers `keep`.

    With `kv`, the last layer kept at or below, as in the paper. With `hidden`, the stream that has
    passed all layers kept below, but at most `computed` of them.
    """
    if features == "kv":
        return tuple((max(sum(k <= i for k in keep) - 1, 0),) for i in range(count))
    return tuple((min(sum(k < i for k in keep), computed),) for i in range(count))


def sibling_sources(targets: int, auxiliaries: int) -> Sources:
    """The same for a smaller sibling: `layer_map`; of a stream, that before the layer it names."""
    return tuple((source,) for source in layer_map(targets, auxiliaries))
