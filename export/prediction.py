"""Trained predictors of KV prediction as parts of a bundle; the graphs are in predictor_graph.

Tensors of the file: `bridge.A.weight`, `bridge.A.bias` and `bridge.A.scale` after auxiliary layer
A; `scale.S` of source S; `map.L.S.key`, `map.L.S.value` of target layer L from source S;
`map.L.key_bias`, `map.L.value_bias`. Those of an auxiliary that is not, or no more, the target's
own: `auxiliary.`, then its layer and place (`3.query.weight`), or, for a sibling, the name in its
checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from quickdraft import strict_json
from quickdraft.errors import CheckpointError
from quickdraft.export.architectures.base import find_family
from quickdraft.export.architectures.decoder import (
    DecoderSpec,
    DecoderWeights,
    LayerWeights,
    Linear,
    Norm,
)
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.emitters.base import Part
from quickdraft.export.layer_maps import Features
from quickdraft.export.predictor_graph import (
    Bridge,
    Maps,
    Prediction,
    build_auxiliary,
    build_predictor,
    reads_normed,
)
from quickdraft.export.trained import Target, Trained
from quickdraft.export.weights import Weight

KIND = "predictor"
PART_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Of the parts, after their role."""


@dataclass(frozen=True)
class Pruned:
    """An auxiliary of the target's own layers `keep`, ascending; those of which the file holds
    trained tensors have these."""

    kind: Literal["pruned"]
    keep: tuple[int, ...]


@dataclass(frozen=True)
class Sibling:
    """An auxiliary that is another model with the target's vocabulary. config: as in Checkpoint."""

    kind: Literal["sibling"]
    config: Mapping[str, Any]


@dataclass(frozen=True)
class PredictionSettings:
    """How the parts are built.

    name: of the parts, after their role. sources: for each target layer what its maps read, see
    predictor_graph.Prediction. exact_first: how many first tokens the target should prefill itself.
    method: how the maps were found. whole: see predictor_graph.Prediction.
    """

    name: str
    auxiliary: Pruned | Sibling
    features: Features
    sources: tuple[tuple[int, ...], ...]
    exact_first: int
    method: str
    whole: bool = False


def attach(trained: Trained, target: Target) -> Sequence[Part]:
    """The auxiliary and the predictor of a file, see export.trained.Attach.

    Raises:
        CheckpointError: settings or tensors do not fit the target, or each other.
    """
    settings = read_settings(trained.settings)
    prediction = read_prediction(settings, trained.weights, target)
    # Computed layers are the first ones of the auxiliary, so its spec cut short fits their cache.
    count = len(prediction.spec.layers) if settings.whole else prediction.computed
    cut = replace(prediction.spec, layers=prediction.spec.layers[:count])
    auxiliary = f"auxiliary-{settings.name}"
    details = {
        "method": settings.method,
        "keep": round(len(prediction.spec.layers) / len(target.spec.layers), 4),
        "budget": trained.card.get("seconds"),
    }
    return (
        Part(
            role="auxiliary",
            name=auxiliary,
            build=lambda ops: build_auxiliary(ops, prediction),
            spec=prediction.spec.model_spec(),
            details=details,
        ),
        Part(
            role="predictor",
            name=f"predictor-{settings.name}",
            build=lambda ops: build_predictor(ops, prediction, target.spec, target.weights.layers),
            spec=cut.model_spec(),
            target=target.spec.model_spec(),
            details={
                **details,
                "auxiliary": auxiliary,
                "features": settings.features,
                "computed_layers": prediction.computed,
                "exact_first": settings.exact_first,
                "whole": settings.whole,
            },
        ),
    )


def read_settings(settings: Mapping[str, Any]) -> PredictionSettings:
    """The settings of a file.

    Raises:
        CheckpointError: they are not those of a predictor.
    """
    try:
        decoded = strict_json.decode(PredictionSettings, dict(settings), "the settings")
    except strict_json.JsonProblem as problem:
        raise CheckpointError(f"the predictor cannot be used: {problem}") from None
    if not PART_NAME.fullmatch(decoded.name):
        raise _wrong(f"its name {decoded.name[:80]!r} is not letters, digits, '.', '_' and '-'")
    return decoded


def read_prediction(settings: PredictionSettings, weights: WeightMap, target: Target) -> Prediction:
    """The weights of a file in their places.

    Raises:
        CheckpointError: something is missing, has a wrong shape, or is left over.
    """
    spec, own = _auxiliary(settings, weights, target)
    _check_sources(settings, spec, target.spec)
    prefix = f"predictor-{settings.name}"
    take = _Taker(weights, prefix)
    wide = {source: _widths(settings.features, spec, source) for source in _all(settings.sources)}
    scales = {source: take.optional(f"scale.{source}", (spec.hidden_size,)) for source in wide}
    prediction = Prediction(
        features=settings.features,
        spec=spec,
        weights=own,
        bridges=tuple(_bridge(take, index, spec) for index in range(len(spec.layers))),
        maps=tuple(
            _maps(take, index, sources, wide, target.spec)
            for index, sources in enumerate(settings.sources)
        ),
        scales={source: scale for source, scale in scales.items() if scale is not None},
        whole=settings.whole,
    )
    has_scale = prediction.scales or any(b and b.scale for b in prediction.bridges)
    is_normed = reads_normed(own) and not (settings.features == "kv" and prediction.scales)
    if has_scale and not is_normed:
        raise _wrong("it scales a norm that is not there")
    left = sorted(name for name in weights if name not in weights.used)
    if left:
        raise _wrong(f"it has the tensor {left[0]!r}, which its settings do not ask for")
    return prediction


class _Taker:
    """Tensors of the file, under names that no other part of a bundle has."""

    def __init__(self, weights: WeightMap, prefix: str) -> None:
        self._weights, self._prefix = weights, prefix

    def __call__(self, name: str, shape: tuple[int, ...]) -> Weight:
        weight = self._weights.expect(name, shape)
        return replace(weight, name=f"{self._prefix}.{name}")

    def optional(self, name: str, shape: tuple[int, ...]) -> Weight | None:
        return self(name, shape) if name in self._weights else None


def _auxiliary(
    settings: PredictionSettings, weights: WeightMap, target: Target
) -> tuple[DecoderSpec, DecoderWeights]:
    if isinstance(settings.auxiliary, Pruned):
        return _pruned(settings.auxiliary.keep, weights, target, f"auxiliary-{settings.name}")
    family = find_family(settings.auxiliary.config)
    spec = family.read(settings.auxiliary.config, "the sibling of the predictor")
    if spec.vocab_size != target.spec.vocab_size:
        raise _wrong(
            f"its sibling has {spec.vocab_size} tokens and the target {target.spec.vocab_size}"
        )
    part = f"auxiliary-{settings.name}"
    own = {
        name.removeprefix("auxiliary."): replace(weights[name], name=f"{part}.{name}")
        for name in weights
        if name.startswith("auxiliary.")
    }
    return spec, family.collect(spec, WeightMap(own))


def _pruned(
    keep: tuple[int, ...], weights: WeightMap, target: Target, name: str
) -> tuple[DecoderSpec, DecoderWeights]:
    count = len(target.spec.layers)
    if not keep or list(keep) != sorted({k for k in keep if 0 <= k < count}):
        raise _wrong(f"it keeps the layers {list(keep)[:64]} of {count}; they must ascend")
    spec = replace(target.spec, layers=tuple(target.spec.layers[k] for k in keep))
    layers = tuple(
        _trained_layer(target.weights.layers[k], weights, f"auxiliary.{index}", name)
        for index, k in enumerate(keep)
    )
    return spec, replace(target.weights, layers=layers)


def _trained_layer(layer: LayerWeights, weights: WeightMap, prefix: str, part: str) -> LayerWeights:
    """A layer of the target, with what the file has in place of its own tensors."""
    changed: dict[str, Linear | Norm] = {}
    for place in fields(layer):
        own: Linear | Norm | None = getattr(layer, place.name)
        if own is None:
            continue
        new: dict[str, Weight] = {}
        for tensor in ("weight", "bias"):
            name, old = f"{prefix}.{place.name}.{tensor}", getattr(own, tensor)
            if name in weights and old is not None:
                new[tensor] = replace(weights.expect(name, old.shape), name=f"{part}.{name}")
        if new:
            changed[place.name] = replace(own, **new)
    return replace(layer, **changed)  # type: ignore[arg-type]  # each is of its field's type


def _check_sources(settings: PredictionSettings, spec: DecoderSpec, target: DecoderSpec) -> None:
    if len(settings.sources) != len(target.layers):
        raise _wrong(f"it maps {len(settings.sources)} layers; the target has {len(target.layers)}")
    # A stream that passed all layers can be read; keys and values only of layers that are there.
    highest = len(spec.layers) - (settings.features == "kv")
    for sources in settings.sources:
        if not sources or list(sources) != sorted({s for s in sources if 0 <= s <= highest}):
            raise _wrong(f"a layer reads {list(sources)[:64]}; sources ascend from 0 to {highest}")
    if max(_all(settings.sources)) == 0:
        raise _wrong("nothing reads more than the first source; a predictor runs a layer at least")
    if settings.exact_first < 0:
        raise _wrong(f"exact_first is {settings.exact_first}")


def _all(sources: Iterable[Iterable[int]]) -> set[int]:
    return {source for each in sources for source in each}


def _widths(features: Features, spec: DecoderSpec, source: int) -> int:
    """How many values a map reads."""
    if features == "hidden":
        return spec.hidden_size
    return spec.layers[source].num_kv_heads * spec.head_dim


def _bridge(take: _Taker, index: int, spec: DecoderSpec) -> Bridge | None:
    width = spec.hidden_size
    weight = take.optional(f"bridge.{index}.weight", (width, width))
    if weight is None:
        return None
    bias = take.optional(f"bridge.{index}.bias", (width,))
    return Bridge(Linear(weight, bias), take.optional(f"bridge.{index}.scale", (width,)))


def _maps(
    take: _Taker, index: int, sources: Sequence[int], wide: Mapping[int, int], target: DecoderSpec
) -> Maps:
    rows = target.layers[index].num_kv_heads * target.head_dim
    return Maps(
        keys={s: take(f"map.{index}.{s}.key", (rows, wide[s])) for s in sources},
        values={s: take(f"map.{index}.{s}.value", (rows, wide[s])) for s in sources},
        key_bias=take(f"map.{index}.key_bias", (rows,)),
        value_bias=take(f"map.{index}.value_bias", (rows,)),
    )


def _wrong(problem: str) -> CheckpointError:
    return CheckpointError(f"the predictor cannot be used: {problem}; train it again")
