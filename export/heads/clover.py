"""Heads that draft with a cell that runs on from token to token, after a block over the context.

After Xiao et al., Clover (arXiv 2405.00263): an augmenting block, one more layer over the target's
last stream, makes the first state; then a cell makes state after state, each from the one before it
and the drafted token. Its attention asks with the state and finds tokens; logits come from the
target's output matrix. Ours: one cell for all depths, as in Clover-2 (arXiv 2408.00264), whose
attention sees all tokens that were drafted on the path, the last decided one among them, and which
also adds its own token to the state; an MLP with a gate; and the output matrix is trimmed to the
commonest tokens. The block is a graph of its
own with a cache, the cell another, which keeps nothing.
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
    layer_attention,
)
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.emitters.base import Part
from quickdraft.export.heads.layer import (
    embedded,
    final_norm,
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
    own_weights,
    token_ids,
)
from quickdraft.export.ops import Ops
from quickdraft.export.trained import Target, Trained
from quickdraft.export.weights import Weight

V = TypeVar("V")

KIND = "clover"
STATE = 1
"""The hidden state that both graphs offer."""


@dataclass(frozen=True)
class CloverSettings:
    """The shape of heads, as their trained file says it.

    mlp_width: inner width of the MLPs of block and cell. vocab_size: tokens they can draft. name:
    what the names of the parts begin with.
    """

    mlp_width: int
    vocab_size: int
    name: str = KIND

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> CloverSettings:
        """Check what a file says.

        Raises:
            CheckpointError: a setting is missing, unknown, or impossible.
        """
        limits = {"mlp_width": (1, MOST), "vocab_size": (2, MOST)}
        return checked_settings(cls, "a head", values, limits)


def attach_clover(trained: Trained, target: Target) -> Sequence[Part]:
    """The parts of trained heads; see export.trained.Attach.

    Raises:
        CheckpointError: their weights or settings do not fit the target.
    """
    settings = CloverSettings.of(trained.settings)
    target.hidden_states.add(len(target.spec.layers))
    return clover_parts(target, settings, trained.weights)


def clover_parts(target: Target, settings: CloverSettings, weights: WeightMap) -> list[Part]:
    """The block, `NAME-1`, and the cell, `NAME-2`, with these weights (names and shapes:
    `tensor_shapes`).

    Features of the block are the target's stream after the last layer; those of the cell the state
    before its token. Nobody reads logits of the block, which are of a few tokens.

    Raises:
        CheckpointError: a weight is missing or has another shape.
    """
    own = own_weights(weights, tensor_shapes(target.spec, settings), settings.name)
    tokens = token_ids(weights, settings.vocab_size, target.spec.vocab_size)
    few = min(TOP, len(tokens))
    layer, cell = (
        {key[len(part) :]: weight for key, weight in own.items() if key.startswith(part)}
        for part in ("block_", "cell_")
    )
    cell["final_norm"] = own["final_norm"]
    ends = [
        ("1", layer, tokens[:few], weights["tokens"].take_rows(np.arange(few), "few")),
        ("2", cell, tokens, weights["tokens"]),
    ]
    parts = []
    for number, held, known, token_map in ends:
        spec = layer_spec(KIND, target.spec, settings.mlp_width, len(known))
        decoder = layer_weights(target, held, known, f"{settings.name}-{number}")
        parts.append(
            Part(
                role="drafter",
                name=f"{settings.name}-{number}",
                build=_block(spec, decoder) if number == "1" else _cell(spec, decoder, held),
                spec=spec.model_spec(),
                hidden_states=(STATE,),
                features=spec.hidden_size,
                top=few,
                token_map=token_map,
                details={
                    "kind": KIND,
                    "hidden_states": [len(target.spec.layers)],
                    "state": STATE,
                },
            )
        )
    return parts


def tensor_shapes(target: DecoderSpec, settings: CloverSettings) -> dict[str, tuple[int, ...]]:
    """Their own float weights. Besides there is `tokens`, int32 [vocab_size], ascending: the
    target's token for each of their own."""
    hidden, layer = target.hidden_size, layer_shapes(target, settings.mlp_width)
    return {
        **{f"block_{name}": shape for name, shape in layer.items()},
        **{f"cell_{name}": shape for name, shape in layer.items()},
        "cell_embed": (hidden, hidden),
        "final_norm": (hidden,),
    }


def initial_weights(
    target: Target, settings: CloverSettings, tokens: NDArray[np.int32], seed: int = 0
) -> dict[str, NDArray[Any]]:
    """Weights to train from: the stream is passed on as the target's last norm passes it, so that
    they begin by saying what the target says next. tokens: int32 [vocab_size], ascending."""
    made = random_weights(tensor_shapes(target.spec, settings), seed)
    made["final_norm"] = final_norm(target)
    made["tokens"] = np.asarray(tokens, np.int32)
    return made


def _block(spec: DecoderSpec, weights: DecoderWeights) -> Callable[[Ops[Any]], None]:
    def build(ops: Ops[V]) -> None:
        x = ops.rms_norm(ops.features(), None, EPS)
        x = decoder_layer(ops, spec, 0, weights.layers[0], x, ops.positions())
        ops.hidden_state(x, STATE)
        ops.logits(decoder_logits(ops, spec, weights, ops.take_rows(x, ops.output_rows())))

    return build


def _cell(
    spec: DecoderSpec, weights: DecoderWeights, own: Mapping[str, Weight]
) -> Callable[[Ops[Any]], None]:
    shape = spec.layers[0]
    value = replace(own["value"], sensitive=True)

    def build(ops: Ops[V]) -> None:
        x, positions = ops.features(), ops.positions()
        token = ops.rms_norm(embedded(ops, spec, weights), None, EPS)
        q = ops.linear(ops.rms_norm(x, own["attention_norm"], EPS), own["query"])
        k, v = ops.linears(token, [(own["key"], None), (value, None)])
        if shape.rope is not None:
            q = ops.rope(q, positions, shape.rope, shape.num_heads)
            k = ops.rope(k, positions, shape.rope, shape.num_kv_heads)
        found = ops.linear(ops.attend(q, k, v, layer_attention(spec, 0)), own["output"])
        x = ops.add(ops.add(x, ops.linear(token, own["embed"])), found)
        inner = ops.rms_norm(x, own["mlp_norm"], EPS)
        x = ops.add(x, ops.gated_mlp(inner, own["gate"], own["up"], own["down"], "silu"))
        ops.hidden_state(x, STATE)
        ops.logits(decoder_logits(ops, spec, weights, ops.take_rows(x, ops.output_rows())))

    return build
