"""The graphs of KV prediction: an auxiliary model, and the maps that write a target's cache.

Horton et al. 2024, arXiv 2410.08391. Theirs: keys and values of a target layer are affine in keys
and values of an auxiliary layer, before norm and rope. Ours: both are affine in the auxiliary's
residual stream, normed, so that its last layer need not be computed; and bridges, affine maps in
place of the layers that a pruned auxiliary lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from quickdraft.export.architectures.decoder import (
    DecoderSpec,
    DecoderWeights,
    LayerWeights,
    Linear,
    decoder_cache,
    decoder_embedding,
    decoder_keys,
    decoder_layer,
    decoder_logits,
    decoder_norm,
    layer_attention,
)
from quickdraft.export.layer_maps import Features
from quickdraft.export.ops import Ops
from quickdraft.export.weights import Weight

V = TypeVar("V")


@dataclass(frozen=True)
class Bridge:
    """x + linear(norm(x)) after an auxiliary layer. scale: of the norm, None for all ones."""

    linear: Linear
    scale: Weight | None = None


@dataclass(frozen=True)
class Maps:
    """Keys and values of one target layer: matrices by source, their products added, one bias."""

    keys: Mapping[int, Weight]
    values: Mapping[int, Weight]
    key_bias: Weight
    value_bias: Weight


@dataclass(frozen=True)
class Prediction:
    """An auxiliary and its maps.

    spec, weights: of the auxiliary. bridges: after each of its layers. maps: by target layer; their
    sources count auxiliary layers passed (features `hidden`) or name auxiliary layers (`kv`).
    scales: of the norm of the stream, by source, ones where it is absent. whole: whether the
    predictor fills the cache of all of the auxiliary's layers, so that it can go on from there.
    """

    features: Features
    spec: DecoderSpec
    weights: DecoderWeights
    bridges: tuple[Bridge | None, ...]
    maps: tuple[Maps, ...]
    scales: Mapping[int, Weight]
    whole: bool = False

    @property
    def computed(self) -> int:
        """How many auxiliary layers run whole: those whose output something reads."""
        return max(max(maps.keys) for maps in self.maps)


def build_auxiliary(ops: Ops[V], prediction: Prediction) -> None:
    """Write the auxiliary as a model of its own: token ids to logits."""
    spec, weights = prediction.spec, prediction.weights
    positions = ops.positions()
    x = decoder_embedding(ops, spec, weights, positions)
    ops.hidden_state(x, 0)
    for index, layer in enumerate(weights.layers):
        x = decoder_layer(ops, spec, index, layer, x, positions)
        x = cross_bridge(ops, spec, weights, prediction.bridges[index], x)
        ops.hidden_state(x, index + 1)
    ops.logits(decoder_logits(ops, spec, weights, ops.take_rows(x, ops.output_rows())))


def build_predictor(
    ops: Ops[V], prediction: Prediction, target: DecoderSpec, layers: Sequence[LayerWeights]
) -> None:
    """Write the predictor: token ids to rows of every layer of the target's cache.

    layers: of the target, whose key norms the predicted keys pass.
    """
    spec, weights = prediction.spec, prediction.weights
    positions = ops.positions()
    sums: dict[int, tuple[V, V]] = {}

    def read(source: int, to_keys: V, to_values: V) -> None:
        """Add what a source gives to the rows of its readers; stage those that are complete."""
        for index, (k, v) in _apply(ops, prediction.maps, source, to_keys, to_values).items():
            if index in sums:
                k, v = ops.add(sums[index][0], k), ops.add(sums[index][1], v)
            sums[index] = (k, v)
            if source == max(prediction.maps[index].keys):
                k = decoder_keys(ops, target, index, layers[index], k, positions)
                ops.stage(k, v, layer_attention(target, index))

    read_sources = {source for maps in prediction.maps for source in maps.keys}
    x = decoder_embedding(ops, spec, weights, positions)
    for index in range(prediction.computed):
        if prediction.features == "hidden" and index in read_sources:
            normed = normed_stream(ops, spec, weights, x, prediction.scales.get(index))
            read(index, normed, normed)
        rows: list[V] = []
        layer = weights.layers[index]
        x = decoder_layer(ops, spec, index, layer, x, positions, rows.extend)
        x = cross_bridge(ops, spec, weights, prediction.bridges[index], x)
        if prediction.features == "kv" and index in read_sources:
            read(index, *rows)
    last = prediction.computed
    if prediction.features == "hidden":
        normed = normed_stream(ops, spec, weights, x, prediction.scales.get(last))
        read(last, normed, normed)
    else:
        read(last, *_project(ops, spec, weights.layers[last], x))
    if prediction.whole:
        for index in range(last, len(weights.layers) - 1):
            x = decoder_layer(ops, spec, index, weights.layers[index], x, positions)
            x = cross_bridge(ops, spec, weights, prediction.bridges[index], x)
        index = len(weights.layers) - 1
        decoder_cache(ops, spec, index, weights.layers[index], x, positions)


def cross_bridge(
    ops: Ops[V], spec: DecoderSpec, weights: DecoderWeights, bridge: Bridge | None, x: V
) -> V:
    """The stream [n, hidden] on the other side of a bridge; as it was where there is none."""
    if bridge is None:
        return x
    normed = normed_stream(ops, spec, weights, x, bridge.scale)
    return ops.add(x, ops.linear(normed, bridge.linear.weight, bridge.linear.bias))


def normed_stream(
    ops: Ops[V], spec: DecoderSpec, weights: DecoderWeights, x: V, scale: Weight | None
) -> V:
    """The stream [n, hidden] as the layers of the model see it, less the weights of their norms.

    A family whose layers read it as it is gets it as it is; scale must be None then.
    """
    if not reads_normed(weights):
        return x
    if spec.norm == "layer":
        return ops.layer_norm(x, scale, None, spec.norm_eps)
    return ops.rms_norm(x, scale, spec.norm_eps)


def reads_normed(weights: DecoderWeights) -> bool:
    """Whether the layers of a model norm what they read."""
    return weights.layers[0].attention_norm is not None


def _project(ops: Ops[V], spec: DecoderSpec, layer: LayerWeights, x: V) -> tuple[V, V]:
    """Keys and values of a layer of which nothing else is computed."""
    normed = decoder_norm(ops, spec, x, layer.attention_norm)
    pairs = [(linear.weight, linear.bias) for linear in (layer.key, layer.value)]
    k, v = ops.linears(normed, pairs)
    return k, v


def _apply(
    ops: Ops[V], maps: Sequence[Maps], source: int, to_keys: V, to_values: V
) -> dict[int, tuple[V, V]]:
    """What the readers of a source make of it, by target layer; the first source has the bias."""
    readers = {index: each for index, each in enumerate(maps) if source in each.keys}
    first = {index for index, each in readers.items() if source == min(each.keys)}
    keys = [(m.keys[source], m.key_bias if i in first else None) for i, m in readers.items()]
    values = [(m.values[source], m.value_bias if i in first else None) for i, m in readers.items()]
    if to_keys is to_values:
        rows = ops.linears(to_keys, [*keys, *values])
    else:
        rows = [*ops.linears(to_keys, keys), *ops.linears(to_values, values)]
    pairs = zip(rows[: len(readers)], rows[len(readers) :], strict=True)
    return dict(zip(readers, pairs, strict=True))
