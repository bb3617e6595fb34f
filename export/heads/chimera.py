"""A head that drafts from the last three tokens and the target's states of the whole context.

After Zeng et al., Chimera (arXiv 2402.15758): a trigram encoder makes a vector of the embeddings of
three tokens, one decoder layer over the target's last stream puts it into its context, and the
output reads both the layer's output and the target's last state. Drafted tokens are read as tokens
alone; no state of the head is fed back. Ours: rows of the target have their trigram as well; one
output serves all depths, over the target's output matrix, trimmed to the commonest tokens; and the
trigram encoder goes to the width of the target at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from quickdraft.export.architectures.decoder import DecoderSpec, DecoderWeights, decoder_layer
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.emitters.base import Part
from quickdraft.export.heads.layer import (
    embedded,
    layer_shapes,
    layer_spec,
    layer_weights,
    random_weights,
)
from quickdraft.export.heads.parts import (
    EPS,
    MOST,
    TOP,
    checked_settings,
    norm_scale,
    own_weights,
    token_ids,
)
from quickdraft.export.ops import Ops
from quickdraft.export.trained import Target, Trained
from quickdraft.export.weights import Weight

V = TypeVar("V")

KIND = "chimera"
EMBEDDING = 1
"""The hidden state that the graph offers: the embedding of its token, for the rows after it."""
PARTS = 3
"""Of the features: the target's last state, and the embeddings of the two tokens before."""


@dataclass(frozen=True)
class ChimeraSettings:
    """The shape of a head, as its trained file says it. mlp_width: inner width of its MLP.
    vocab_size: tokens it can draft. name: of the part."""

    mlp_width: int
    vocab_size: int
    name: str = KIND

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ChimeraSettings:
        """Check what a file says.

        Raises:
            CheckpointError: a setting is missing, unknown, or impossible.
        """
        limits = {"mlp_width": (1, MOST), "vocab_size": (2, MOST)}
        return checked_settings(cls, "a head", values, limits)


def attach_chimera(trained: Trained, target: Target) -> Sequence[Part]:
    """The part of a trained head; see export.trained.Attach.

    Raises:
        CheckpointError: its weights or settings do not fit the target.
    """
    settings = ChimeraSettings.of(trained.settings)
    target.hidden_states.update((0, len(target.spec.layers)))
    return [chimera_part(target, settings, trained.weights)]


def chimera_part(target: Target, settings: ChimeraSettings, weights: WeightMap) -> Part:
    """The graph of a head with these weights (names and shapes: `tensor_shapes`).

    Features are the target's last state, that of the row or, of a drafted token, of the last row
    there is; then the embeddings of the token before and of the one before that.

    Raises:
        CheckpointError: a weight is missing or has another shape.
    """
    own = own_weights(weights, tensor_shapes(target.spec, settings), settings.name)
    tokens = token_ids(weights, settings.vocab_size, target.spec.vocab_size)
    spec = layer_spec(KIND, target.spec, settings.mlp_width, settings.vocab_size)
    decoder = layer_weights(target, own, tokens, settings.name)
    return Part(
        role="drafter",
        name=settings.name,
        build=_builder(spec, decoder, own),
        spec=spec.model_spec(),
        hidden_states=(EMBEDDING,),
        features=PARTS * spec.hidden_size,
        top=TOP,
        token_map=weights["tokens"],
        details={
            "kind": KIND,
            "hidden_states": [0, len(target.spec.layers)],
            "state": EMBEDDING,
        },
    )


def tensor_shapes(target: DecoderSpec, settings: ChimeraSettings) -> dict[str, tuple[int, ...]]:
    """Its own float weights; those of the token and of the features stand apart. Besides there is
    `tokens`, int32 [vocab_size], ascending: the target's token for each of its own.

    fuse: of all that is read; trigram: of its encoder's inner layer, trigram_down back. base: of
    the output, from the features; encoded: from the layer.
    """
    hidden = target.hidden_size
    return {
        "fuse": (hidden, PARTS * hidden),
        "fuse_token": (hidden, hidden),
        "trigram": (hidden, PARTS * hidden),
        "trigram_token": (hidden, hidden),
        "trigram_bias": (hidden,),
        "trigram_down": (hidden, hidden),
        **layer_shapes(target, settings.mlp_width),
        "final_norm": (hidden,),
        "base": (hidden, PARTS * hidden),
        "encoded": (hidden, hidden),
    }


def initial_weights(
    target: Target, settings: ChimeraSettings, tokens: NDArray[np.int32], seed: int = 0
) -> dict[str, NDArray[Any]]:
    """Weights to train from: the target's last state goes to the output as the target's last norm
    passes it, so that the head begins by saying what the target says next; all else is small and
    random. tokens: int32 [vocab_size], ascending."""
    made = random_weights(tensor_shapes(target.spec, settings), seed)
    hidden = target.spec.hidden_size
    made["base"] *= 0
    made["base"][:, :hidden] = np.diag(norm_scale(target))
    made["encoded"] *= np.float32(0.3)
    made["trigram_bias"] *= 0
    made["tokens"] = np.asarray(tokens, np.int32)
    return made


def _builder(
    spec: DecoderSpec, weights: DecoderWeights, own: Mapping[str, Weight]
) -> Callable[[Ops[Any]], None]:
    def build(ops: Ops[V]) -> None:
        embedding = embedded(ops, spec, weights)
        ops.hidden_state(embedding, EMBEDDING)
        token = ops.rms_norm(embedding, None, EPS)
        before = ops.rms_norm(ops.features(), None, EPS, PARTS)

        def both(name: str, bias: Weight | None = None) -> V:
            of_token = ops.linear(token, own[f"{name}_token"], bias)
            return ops.add(ops.linear(before, own[name]), of_token)

        opened = ops.activate(both("trigram", own["trigram_bias"]), "silu")
        x = ops.add(both("fuse"), ops.linear(opened, own["trigram_down"]))
        x = decoder_layer(ops, spec, 0, weights.layers[0], x, ops.positions())
        encoded = ops.linear(ops.rms_norm(x, own["final_norm"], EPS), own["encoded"])
        y = ops.take_rows(ops.add(ops.linear(before, own["base"]), encoded), ops.output_rows())
        logits = ops.linear(y, weights.head.weight, weights.head.bias)
        cap = spec.logit_softcap
        ops.logits(logits if cap is None else ops.softcap(logits, cap))

    return build
