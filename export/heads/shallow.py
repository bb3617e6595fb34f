"""A few layers of a decoder that draft for the whole of it, over the same memory.

What reads a source is left to the target's encoder, as in Canary-Flash (arXiv 2503.05931), whose
decoders are shallow: each layer attends to what the encoder put out for the layer it was taken
from, so a draft needs no encoder, no projections of a source and no room for them. Embeddings and
head are the target's too. Its other weights are those of the target's layers, or trained ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import CheckpointError
from quickdraft.export.architectures.decoder import Linear, Norm
from quickdraft.export.architectures.seq2seq import (
    AttentionWeights,
    LayerWeights,
    Seq2SeqWeights,
    StackWeights,
    build_target,
)
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.emitters.base import Part
from quickdraft.export.trained import TargetWithEncoder, Trained
from quickdraft.export.weights import Weight

KIND = "shallow"
Floats = NDArray[np.float32]
Own = Callable[[str, Weight], Weight]
"""A weight of the draft by its name, given the target's."""


@dataclass(frozen=True)
class ShallowSettings:
    """layers: of the target's decoder, rising, that the draft has. name: of the part."""

    layers: tuple[int, ...]
    name: str = KIND

    @classmethod
    def of(cls, values: Mapping[str, Any], num_layers: int) -> ShallowSettings:
        """Check what a file says. num_layers: of the target's decoder.

        Raises:
            CheckpointError: a setting is missing, unknown, or impossible.
        """
        if set(values) != {"layers", "name"}:
            raise CheckpointError(
                f"the settings of a shallow draft are layers, name; the file has "
                f"{', '.join(sorted(values))}"
            )
        layers, name = values["layers"], values["name"]
        given = layers if isinstance(layers, list) else []
        known = all(type(layer) is int and 0 <= layer < num_layers for layer in given)
        if not given or not known or given != sorted(set(given)):
            raise CheckpointError(
                f"layers of a shallow draft is {layers!r}; it must list some of 0 to "
                f"{num_layers - 1}, rising"
            )
        if not isinstance(name, str):
            raise CheckpointError(f"name of a shallow draft is {name!r}; it must be text")
        return cls(tuple(given), name)


def attach_shallow(trained: Trained, target: TargetWithEncoder) -> Sequence[Part]:
    """The part of a shallow draft; see export.trained.AttachWithEncoder. Weights that the file does
    not hold are the target's.

    Raises:
        CheckpointError: its weights or settings do not fit the target.
    """
    settings = ShallowSettings.of(trained.settings, target.spec.decoder.num_layers)
    return [shallow_part(target, settings, trained.weights)]


def untrained(target: TargetWithEncoder, settings: ShallowSettings) -> dict[str, Floats]:
    """Tensors of a file whose draft is the target's layers as they are. A file holds at least one
    tensor, so it is one that every model has and that is small."""
    norm = target.weights.decoder.layers[settings.layers[0]].mlp.norm.weight
    assert norm is not None  # families with an encoder have it  # noqa: S101
    return {"0.mlp.norm": norm.dense()}


def own_weights(target: TargetWithEncoder, settings: ShallowSettings) -> dict[str, Floats]:
    """All that a draft can have of its own, by the names in its file, as the target has it."""
    found: dict[str, Floats] = {}

    def own(name: str, weight: Weight) -> Weight:
        found[name] = weight.dense()
        return weight

    _stack(target.weights.decoder, settings, own)
    return found


def shallow_part(
    target: TargetWithEncoder, settings: ShallowSettings, weights: WeightMap | None = None
) -> Part:
    """The graph of a shallow draft. weights: what it has of its own, by names as `0.mlp.up`, the
    layer of the draft first; None: nothing.

    Raises:
        CheckpointError: a weight has another shape, or no place.
    """
    trained = WeightMap({}) if weights is None else weights

    def own(name: str, weight: Weight) -> Weight:
        if name not in trained:
            return weight
        return replace(trained.expect(name, weight.shape), name=f"{settings.name}.{name}")

    stack = _stack(target.weights.decoder, settings, own)
    unknown = sorted(set(trained) - trained.used)
    if unknown:
        raise CheckpointError(f"a shallow draft of these layers has no weight {unknown[0]!r}")
    count = len(settings.layers)
    spec = replace(target.spec, decoder=replace(target.spec.decoder, num_layers=count))
    return Part(
        role="drafter",
        name=settings.name,
        build=partial(
            build_target,
            spec=spec,
            weights=Seq2SeqWeights(target.weights.encoder, stack, target.weights.head),
            memory=settings.layers,
        ),
        spec=spec.model_spec(),
        memory=target.facts,
        details={"kind": KIND},
    )


def _stack(decoder: StackWeights, settings: ShallowSettings, own: Own) -> StackWeights:
    final = decoder.final_norm
    return replace(
        decoder,
        layers=tuple(
            _layer(decoder.layers[layer], partial(_prefixed, own, f"{index}."))
            for index, layer in enumerate(settings.layers)
        ),
        final_norm=None if final is None else _norm(final, "final_norm", own),
    )


def _prefixed(own: Own, prefix: str, name: str, weight: Weight) -> Weight:
    return own(prefix + name, weight)


def _layer(layer: LayerWeights, own: Own) -> LayerWeights:
    """A layer with weights of its own; keys and values of the memory are the encoder's affair."""
    cross, mlp = layer.cross, layer.mlp
    assert cross is not None  # every layer of a decoder has it  # noqa: S101
    return LayerWeights(
        _attention(layer.attention, "attention.", own, ("query", "key", "value", "output")),
        _attention(cross, "cross.", own, ("query", "output")),
        replace(
            mlp,
            gate=None if mlp.gate is None else _linear(mlp.gate, "mlp.gate", own),
            up=_linear(mlp.up, "mlp.up", own),
            down=_linear(mlp.down, "mlp.down", own),
            norm=_norm(mlp.norm, "mlp.norm", own),
        ),
    )


def _attention(
    weights: AttentionWeights, prefix: str, own: Own, names: Sequence[str]
) -> AttentionWeights:
    linears: dict[str, Any] = {
        name: _linear(getattr(weights, name), prefix + name, own) for name in names
    }
    return replace(weights, **linears, norm=_norm(weights.norm, f"{prefix}norm", own))


def _linear(linear: Linear, name: str, own: Own) -> Linear:
    bias = linear.bias
    return Linear(own(name, linear.weight), None if bias is None else own(f"{name}_bias", bias))


def _norm(norm: Norm, name: str, own: Own) -> Norm:
    weight, bias = norm.weight, norm.bias
    return Norm(
        None if weight is None else own(name, weight),
        None if bias is None else own(f"{name}_bias", bias),
    )
