"""A head that drafts a block of tokens a step from the target's hidden states.

After Gao et al., Falcon (arXiv 2412.12639): a semi-autoregressive drafter, whose step reads the
tokens and states of a whole block and says the whole next one, so that it takes a step for every k
tokens. There, all rows of a block see each other. Ours: everything that is said of a block is made
of its last row, which sees all others, so that the graph is a common causal layer, as that of
quickdraft.export.heads.eagle, which every backend runs; and as what a token reads is that token and
one state, what was accepted of a block needs no recomputing. State k of a row is the layer's output
plus an MLP of its own over it (for the first one, nothing), in place of an LSTM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from quickdraft.export.architectures.decoder import (
    DecoderSpec,
    DecoderWeights,
    decoder_layer,
    decoder_logits,
)
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.emitters.base import Part
from quickdraft.export.heads.eagle import fused, fused_shapes, pass_on
from quickdraft.export.heads.layer import (
    Floats,
    final_norm,
    layer_shapes,
    layer_spec,
    layer_weights,
    random_weights,
    streams_of,
)
from quickdraft.export.heads.parts import (
    EPS,
    MOST,
    MOST_HEADS,
    TOP,
    checked_settings,
    own_weights,
    token_ids,
)
from quickdraft.export.ops import Ops
from quickdraft.export.trained import Target, Trained
from quickdraft.export.weights import Weight

V = TypeVar("V")

KIND = "falcon"


@dataclass(frozen=True)
class FalconSettings:
    """The shape of a head, as its trained file says it.

    hidden_states: streams of the target it reads, by number of layers passed. mlp_width: inner
    width of its MLPs. vocab_size: tokens it can draft. block: tokens that a step says. name: of the
    part.
    """

    hidden_states: tuple[int, ...]
    mlp_width: int
    vocab_size: int
    block: int
    name: str = KIND

    @classmethod
    def of(cls, values: Mapping[str, Any], num_layers: int) -> FalconSettings:
        """Check what a file says. num_layers: of the target.

        Raises:
            CheckpointError: a setting is missing, unknown, or impossible.
        """
        limits = {"mlp_width": (1, MOST), "vocab_size": (2, MOST), "block": (1, MOST_HEADS)}
        made = checked_settings(cls, "a head", values, limits)
        return replace(made, hidden_states=streams_of(values, num_layers))


def attach_falcon(trained: Trained, target: Target) -> Sequence[Part]:
    """The part of a trained head; see export.trained.Attach.

    Raises:
        CheckpointError: its weights or settings do not fit the target.
    """
    settings = FalconSettings.of(trained.settings, len(target.spec.layers))
    target.hidden_states.update(settings.hidden_states)
    return [falcon_part(target, settings, trained.weights)]


def falcon_part(target: Target, settings: FalconSettings, weights: WeightMap) -> Part:
    """The graph of a head with these weights (names and shapes: `tensor_shapes`). Of a step of n
    rows, logits number k * n + r are those of token k of the block after row r.

    Raises:
        CheckpointError: a weight is missing or has another shape.
    """
    own = own_weights(weights, tensor_shapes(target.spec, settings), settings.name)
    tokens = token_ids(weights, settings.vocab_size, target.spec.vocab_size)
    spec = layer_spec(KIND, target.spec, settings.mlp_width, settings.vocab_size)
    decoder = layer_weights(target, own, tokens, settings.name)
    parts, states = len(settings.hidden_states) + 1, range(1, settings.block + 1)
    return Part(
        role="drafter",
        name=settings.name,
        build=_builder(spec, decoder, own, parts, settings.block),
        spec=spec.model_spec(),
        hidden_states=tuple(states),
        features=parts * spec.hidden_size,
        top=TOP,
        token_map=weights["tokens"],
        details={
            "kind": KIND,
            "hidden_states": list(settings.hidden_states),
            "state": list(states),
            "block": settings.block,
        },
    )


def tensor_shapes(target: DecoderSpec, settings: FalconSettings) -> dict[str, tuple[int, ...]]:
    """Its own float weights. Besides there is `tokens`, int32 [vocab_size], ascending: the target's
    token for each of its own."""
    hidden, width = target.hidden_size, settings.mlp_width
    shapes = {
        **fused_shapes(hidden, len(settings.hidden_states) + 1),
        **layer_shapes(target, width),
        "final_norm": (hidden,),
    }
    for number in range(2, settings.block + 1):
        shapes |= {
            f"norm_{number}": (hidden,),
            f"gate_{number}": (width, hidden),
            f"up_{number}": (width, hidden),
            f"down_{number}": (hidden, width),
        }
    return shapes


def initial_weights(
    target: Target,
    settings: FalconSettings,
    tokens: NDArray[np.int32],
    seed: int = 0,
    spread: Floats | None = None,
) -> dict[str, NDArray[Any]]:
    """Weights to train from, as those of quickdraft.export.heads.eagle; the states of a block begin
    nearly equal."""
    made = random_weights(tensor_shapes(target.spec, settings), seed)
    pass_on(made, len(settings.hidden_states), spread)
    made["final_norm"] = final_norm(target)
    made["tokens"] = np.asarray(tokens, np.int32)
    return made


def _builder(
    spec: DecoderSpec, weights: DecoderWeights, own: Mapping[str, Weight], parts: int, block: int
) -> Callable[[Ops[Any]], None]:
    def build(ops: Ops[V]) -> None:
        x, _ = fused(ops, spec, weights, own, parts)
        x = decoder_layer(ops, spec, 0, weights.layers[0], x, ops.positions())
        states = [x]
        for number in range(2, block + 1):
            inner = ops.rms_norm(x, own[f"norm_{number}"], EPS)
            gate, up, down = (own[f"{name}_{number}"] for name in ("gate", "up", "down"))
            states.append(ops.add(x, ops.gated_mlp(inner, gate, up, down, "silu")))
        for number, state in enumerate(states, 1):
            ops.hidden_state(state, number)
        wanted = ops.take_rows(ops.stack(states), ops.output_rows())
        ops.logits(decoder_logits(ops, spec, weights, wanted))

    return build
