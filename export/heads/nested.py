"""A compact draft that can stop after some of its layers: several drafts, one inside another.

After Kavehzadeh et al., S2D (arXiv 2407.01955): every exit puts out logits through the norm and the
output matrix that all of them share, and drafting goes on to a later one only where an earlier one
is not sure. Ours: the draft is that of quickdraft.export.heads.compact. The layers up to an exit
are a graph of their own, which hands its stream on to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from quickdraft.errors import CheckpointError
from quickdraft.export.architectures.decoder import (
    DecoderSpec,
    DecoderWeights,
    Linear,
    Norm,
    decoder_layer,
    decoder_logits,
)
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.emitters.base import Part
from quickdraft.export.heads.compact import (
    CompactSettings,
    compact_layer,
    decoder_spec,
    tensor_shapes,
)
from quickdraft.export.heads.parts import EPS, TOP, own_weights, token_ids
from quickdraft.export.ops import Ops
from quickdraft.export.trained import Target, Trained
from quickdraft.export.weights import Weight

V = TypeVar("V")

KIND = "nested"
STATE = 1
"""The hidden state that every graph offers: the stream after its last layer."""


@dataclass(frozen=True)
class NestedSettings:
    """The shape of a nested draft, as its trained file says it. exits: numbers of layers, rising;
    the last one is all of them. shape: of the whole draft."""

    exits: tuple[int, ...]
    shape: CompactSettings

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> NestedSettings:
        """Check what a file says.

        Raises:
            CheckpointError: a setting is missing, unknown, or impossible.
        """
        shape = CompactSettings.of({k: v for k, v in values.items() if k != "exits"})
        exits = values.get("exits")
        sound = (
            isinstance(exits, list | tuple)
            and len(exits) > 0
            and all(type(layer) is int and layer > 0 for layer in exits)
            and list(exits) == sorted(set(exits))
            and exits[-1] == shape.layers
        )
        if not sound:
            raise CheckpointError(
                f"exits of a nested draft are {exits!r}; they are numbers of layers in ascending "
                f"order, of which the last is {shape.layers}"
            )
        return cls(tuple(exits or ()), shape)

    def values(self) -> dict[str, Any]:
        """What a file says."""
        return {**asdict(self.shape), "exits": list(self.exits)}


def attach_nested(trained: Trained, target: Target) -> Sequence[Part]:
    """The parts of a trained nested draft; see export.trained.Attach.

    Raises:
        CheckpointError: its weights or settings do not fit the target.
    """
    return nested_parts(target, NestedSettings.of(trained.settings), trained.weights)


def nested_parts(target: Target, settings: NestedSettings, weights: WeightMap) -> list[Part]:
    """The graph up to every exit from the one before it, `NAME-1` first, with these weights (names
    and shapes as of quickdraft.export.heads.compact). Features of all but the first are the stream
    after the one before.

    Raises:
        CheckpointError: a weight is missing or has another shape.
    """
    shape = settings.shape
    own = own_weights(weights, tensor_shapes(target.spec, shape), shape.name)
    token_ids(weights, shape.vocab_size, target.spec.vocab_size)  # refuses what cannot be
    whole, parts, before = decoder_spec(target.spec, shape), [], 0
    for number, end in enumerate(settings.exits, 1):
        spec = replace(whole, family=KIND, layers=whole.layers[before:end])
        decoder = DecoderWeights(
            embedding=target.weights.embedding,
            layers=tuple(compact_layer(own, index) for index in range(before, end)),
            final_norm=Norm(own["final_norm"]),
            head=Linear(own["head"]),
        )
        parts.append(
            Part(
                role="drafter",
                name=f"{shape.name}-{number}",
                build=_builder(spec, decoder, None if before else own["embed"]),
                spec=spec.model_spec(),
                hidden_states=(STATE,),
                features=shape.width if before else 0,
                top=TOP,
                token_map=weights["tokens"],
                details={"kind": KIND, "state": STATE, "exits": len(settings.exits)},
            )
        )
        before = end
    return parts


def _builder(
    spec: DecoderSpec, weights: DecoderWeights, embed: Weight | None
) -> Callable[[Ops[Any]], None]:
    """embed: of the first graph alone; the others read the stream."""

    def build(ops: Ops[V]) -> None:
        if embed is None:
            x = ops.features()
        else:
            token = ops.rms_norm(ops.embed(ops.tokens(), weights.embedding), None, EPS)
            x = ops.linear(token, embed)
        positions = ops.positions()
        for index, layer in enumerate(weights.layers):
            x = decoder_layer(ops, spec, index, layer, x, positions)
        ops.hidden_state(x, STATE)
        ops.logits(decoder_logits(ops, spec, weights, ops.take_rows(x, ops.output_rows())))

    return build
