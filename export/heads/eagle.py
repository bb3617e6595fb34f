"""A head of one decoder layer that drafts from the target's hidden states, token by token.

After Li et al., EAGLE (arXiv 2401.15077), and EAGLE-3 (arXiv 2503.01840): it reads the token that
follows a row of the target together with the hidden states of that row, and, for tokens that are
only drafted, its own state instead; its logits are over the commonest tokens. On request it is
FSPAD's (Gui et al., arXiv 2408.15562): the sampled token opens a gate over the fused vector, and
the MLP has two outputs, one that the logits are made of and one that is read in place of the
target's state. Ours: token and features are added instead of concatenated, after norms of their
own, so that the layer is one of a common decoder; and the matrix of the output is made of rows of
the target's own, which costs a trained file nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import CheckpointError
from quickdraft.export.architectures.decoder import (
    DecoderSpec,
    DecoderWeights,
    decoder_attention,
    decoder_layer,
    decoder_logits,
    decoder_norm,
)
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.emitters.base import Part
from quickdraft.export.heads.layer import (
    Floats,
    embedded,
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
    TOP,
    checked_settings,
    own_weights,
    token_ids,
)
from quickdraft.export.ops import Ops
from quickdraft.export.trained import Target, Trained
from quickdraft.export.weights import Weight

V = TypeVar("V")

KIND = "eagle"


@dataclass(frozen=True)
class EagleSettings:
    """The shape of a head, as its trained file says it.

    hidden_states: streams of the target it reads, by number of layers passed. mlp_width: inner
    width of its MLP. vocab_size: tokens it can draft. sampling_width: inner width of FSPAD's
    feature sampling, 0 for none. name: of the part. two_outputs: whether its state is an output of
    its own; files from before there was this do not say it.
    """

    hidden_states: tuple[int, ...]
    mlp_width: int
    vocab_size: int
    sampling_width: int = 0
    name: str = KIND
    two_outputs: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any], num_layers: int) -> EagleSettings:
        """Check what a file says. num_layers: of the target.

        Raises:
            CheckpointError: a setting is missing, unknown, or impossible.
        """
        values = {"two_outputs": False, **values}
        if type(values["two_outputs"]) is not bool:
            raise CheckpointError(f"two_outputs of a head is {values['two_outputs']!r}")
        limits = {"mlp_width": (1, MOST), "vocab_size": (2, MOST), "sampling_width": (0, MOST)}
        made = checked_settings(cls, "a head", values, limits)
        return replace(made, hidden_states=streams_of(values, num_layers))


def attach_eagle(trained: Trained, target: Target) -> Sequence[Part]:
    """The part of a trained head; see export.trained.Attach.

    Raises:
        CheckpointError: its weights or settings do not fit the target.
    """
    settings = EagleSettings.of(trained.settings, len(target.spec.layers))
    target.hidden_states.update(settings.hidden_states)
    return [eagle_part(target, settings, trained.weights)]


def eagle_part(target: Target, settings: EagleSettings, weights: WeightMap) -> Part:
    """The graph of a head with these weights (names and shapes: `tensor_shapes`).

    Raises:
        CheckpointError: a weight is missing or has another shape.
    """
    own = own_weights(weights, tensor_shapes(target.spec, settings), settings.name)
    tokens = token_ids(weights, settings.vocab_size, target.spec.vocab_size)
    spec = layer_spec(KIND, target.spec, settings.mlp_width, settings.vocab_size)
    decoder = layer_weights(target, own, tokens, settings.name)
    parts = len(settings.hidden_states) + 1
    return Part(
        role="drafter",
        name=settings.name,
        build=_builder(spec, decoder, own, parts),
        spec=spec.model_spec(),
        hidden_states=(1,),
        features=parts * spec.hidden_size,
        top=TOP,
        token_map=weights["tokens"],
        details={"kind": KIND, "hidden_states": list(settings.hidden_states), "state": 1},
    )


def tensor_shapes(target: DecoderSpec, settings: EagleSettings) -> dict[str, tuple[int, ...]]:
    """Its own float weights. Besides there is `tokens`, int32 [vocab_size], ascending: the target's
    token for each of its own."""
    hidden, wide = target.hidden_size, settings.sampling_width
    shapes = {
        **fused_shapes(hidden, len(settings.hidden_states) + 1),
        **layer_shapes(target, settings.mlp_width),
        "final_norm": (hidden,),
    }
    if wide:
        shapes |= {"sampling_norm": (hidden,), "sampling_gate": (wide, hidden)}
        shapes |= {"sampling_up": (wide, hidden), "sampling_down": (hidden, wide)}
    if settings.two_outputs:
        shapes |= {"state_down": (hidden, settings.mlp_width)}
    return shapes


def fused_shapes(hidden: int, parts: int) -> dict[str, tuple[int, ...]]:
    """Of what `fused` needs. fuse: of the features, normed one by one; embed: of the token's
    embedding."""
    return {
        "features_norm": (hidden * parts,),
        "fuse": (hidden, hidden * parts),
        "embed": (hidden, hidden),
        "embed_norm": (hidden,),
    }


def initial_weights(
    target: Target,
    settings: EagleSettings,
    tokens: NDArray[np.int32],
    seed: int = 0,
    spread: Floats | None = None,
) -> dict[str, NDArray[Any]]:
    """Weights to train from: the last stream it reads, or its own state, goes on to the output as
    it would in the target; all else is small and random.

    tokens: int32 [vocab_size], ascending. spread: float32 [streams, hidden], how far each value of
    a normed stream lies from 0 (root of the mean square), None where that is not known.
    """
    made = random_weights(tensor_shapes(target.spec, settings), seed)
    pass_on(made, len(settings.hidden_states), spread)
    made["final_norm"] = final_norm(target)
    made["tokens"] = np.asarray(tokens, np.int32)
    return made


def pass_on(made: dict[str, NDArray[Any]], streams: int, spread: Floats | None) -> None:
    """Let a head start by passing its last stream, or its own state, on; see `initial_weights`."""
    hidden = made["embed_norm"].size
    each = np.ones((streams + 1, hidden), np.float32)
    if spread is not None:
        each[:] = np.maximum([*spread, spread[-1]], 1e-3)  # its own state is as the last stream
    made["features_norm"] = 1 / each.ravel()
    made["fuse"] *= np.float32(0.3)
    made["fuse"][:, (streams - 1) * hidden :] = np.concatenate([np.diag(each[-1])] * 2, axis=1)


def fused(
    ops: Ops[V], spec: DecoderSpec, weights: DecoderWeights, own: Mapping[str, Weight], parts: int
) -> tuple[V, V]:
    """What the layer reads: token and features, normed and added; and the normed token."""
    token = ops.rms_norm(embedded(ops, spec, weights), own["embed_norm"], EPS)
    features = ops.layer_norm(ops.features(), own["features_norm"], None, EPS, parts)
    return ops.add(ops.linear(features, own["fuse"]), ops.linear(token, own["embed"])), token


def _builder(
    spec: DecoderSpec, weights: DecoderWeights, own: Mapping[str, Weight], parts: int
) -> Callable[[Ops[Any]], None]:
    def build(ops: Ops[V]) -> None:
        x, token = fused(ops, spec, weights, own, parts)
        if "sampling_gate" in own:
            x = ops.add(x, _sample(ops, own, x, token))
        if "state_down" in own:
            x = _two_outputs(ops, spec, weights, own, x)
        else:
            x = decoder_layer(ops, spec, 0, weights.layers[0], x, ops.positions())
            ops.hidden_state(x, 1)
        wanted = ops.take_rows(x, ops.output_rows())
        ops.logits(decoder_logits(ops, spec, weights, wanted))

    return build


def _sample(ops: Ops[V], own: Mapping[str, Weight], x: V, token: V) -> V:
    """Let the token, which was drawn after the features were made, choose among them."""
    opened = ops.activate(ops.linear(token, own["sampling_gate"]), "silu")
    raised = ops.linear(ops.rms_norm(x, own["sampling_norm"], EPS), own["sampling_up"])
    return ops.linear(ops.multiply(opened, raised), own["sampling_down"])


def _two_outputs(
    ops: Ops[V], spec: DecoderSpec, weights: DecoderWeights, own: Mapping[str, Weight], x: V
) -> V:
    """The layer, whose MLP ends twice: what logits are made of, and the state that it offers. Both
    are added to the same stream."""
    (layer,) = weights.layers
    normed = decoder_norm(ops, spec, x, layer.attention_norm)
    x = ops.add(x, decoder_attention(ops, spec, 0, layer, normed, ops.positions()))
    inner = decoder_norm(ops, spec, x, layer.mlp_norm)
    opened = ops.activate(ops.linear(inner, own["gate"]), "silu")
    both = ops.multiply(opened, ops.linear(inner, own["up"]))
    ops.hidden_state(ops.add(x, ops.linear(both, own["state_down"])), 1)
    return ops.add(x, ops.linear(both, own["down"]))
