"""Heads that each say a token further ahead, from a hidden state and all tokens drafted before.

After Ankner et al., Hydra (arXiv 2402.05109, section 3): where Medusa's heads do not know what the
ones before them said, head k also reads the embeddings of the k tokens after the hidden state. Its
block is residual(c) + silu(block(c)) over their concatenation c. Drafting goes token by token, all
nodes of a level at once, and every head is a graph of its own, so that a level reads the weights of
one. Ours: the target's output matrix, trimmed to the commonest tokens, serves all heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from quickdraft.export.architectures.decoder import DecoderSpec, Linear
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.emitters.base import Part
from quickdraft.export.heads.parts import (
    EPS,
    TOP,
    HeadsSettings,
    norm_scale,
    own_weights,
    rowwise_spec,
    token_ids,
    trimmed_head,
)
from quickdraft.export.ops import Ops
from quickdraft.export.trained import Target, Trained
from quickdraft.export.weights import Weight

V = TypeVar("V")

KIND = "hydra"
EMBEDDING = 1
"""The hidden state that every graph offers: the embedding of its token, for the graphs after it."""


def attach_hydra(trained: Trained, target: Target) -> Sequence[Part]:
    """The parts of trained heads; see export.trained.Attach.

    Raises:
        CheckpointError: their weights or settings do not fit the target.
    """
    settings = HeadsSettings.of(trained.settings)
    target.hidden_states.add(len(target.spec.layers))
    return hydra_parts(target, settings, trained.weights)


def hydra_parts(target: Target, settings: HeadsSettings, weights: WeightMap) -> list[Part]:
    """The graph of every head (names and shapes of weights: `tensor_shapes`), `NAME-1` first.

    The tokens of head k are the k-th after the hidden state; its features are that state, the
    target's stream after the last layer, and the embeddings of the tokens between.

    Raises:
        CheckpointError: a weight is missing or has another shape.
    """
    own = own_weights(weights, tensor_shapes(target.spec, settings), settings.name)
    tokens = token_ids(weights, settings.vocab_size, target.spec.vocab_size)
    head = trimmed_head(target.weights.head, tokens, settings.name)
    return [
        Part(
            role="drafter",
            name=f"{settings.name}-{number}",
            build=_builder(target, own, head, number),
            spec=rowwise_spec(KIND, target, settings.vocab_size),
            hidden_states=(EMBEDDING,),
            features=number * target.spec.hidden_size,
            top=TOP,
            token_map=weights["tokens"],
            details={
                "kind": KIND,
                "hidden_states": [len(target.spec.layers)],
                "state": EMBEDDING,
                "heads": settings.heads,
            },
        )
        for number in range(1, settings.heads + 1)
    ]


def tensor_shapes(target: DecoderSpec, settings: HeadsSettings) -> dict[str, tuple[int, ...]]:
    """Their own float weights; those of the token and of what comes before it stand apart. Besides
    there is `tokens`, int32 [vocab_size], ascending: the target's token for each of their own."""
    hidden = target.hidden_size
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(1, settings.heads + 1):
        for name in ("residual", "block"):
            shapes[f"{name}_{number}"] = (hidden, number * hidden)
            shapes[f"{name}_token_{number}"] = (hidden, hidden)
        shapes[f"bias_{number}"] = (hidden,)
    return shapes


def initial_weights(
    target: Target, settings: HeadsSettings, tokens: NDArray[np.int32], seed: int = 0
) -> dict[str, NDArray[Any]]:
    """Weights to train from: the hidden state passed on as the target's last norm passes it, so
    that every head begins by saying what the target says next. tokens: int32 [vocab_size],
    ascending."""
    del seed
    hidden = target.spec.hidden_size
    shapes = tensor_shapes(target.spec, settings)
    made: dict[str, NDArray[Any]] = {name: np.zeros(s, np.float32) for name, s in shapes.items()}
    for number in range(1, settings.heads + 1):
        made[f"residual_{number}"][:, :hidden] = np.diag(norm_scale(target))
    made["tokens"] = np.asarray(tokens, np.int32)
    return made


def _builder(
    target: Target, own: Mapping[str, Weight], head: Linear, number: int
) -> Callable[[Ops[Any]], None]:
    spec = target.spec

    def build(ops: Ops[V]) -> None:
        token = ops.embed(ops.tokens(), target.weights.embedding)
        if spec.embedding_scale is not None:
            token = ops.scale(token, spec.embedding_scale)
        ops.hidden_state(token, EMBEDDING)
        token = ops.rms_norm(token, None, EPS)
        before = ops.rms_norm(ops.features(), None, EPS, number)

        def both(name: str, bias: Weight | None = None) -> V:
            of_token = ops.linear(token, own[f"{name}_token_{number}"], bias)
            return ops.add(ops.linear(before, own[f"{name}_{number}"]), of_token)

        opened = ops.activate(both("block", own[f"bias_{number}"]), "silu")
        wanted = ops.take_rows(ops.add(both("residual"), opened), ops.output_rows())
        logits = ops.linear(wanted, head.weight, head.bias)
        cap = spec.logit_softcap
        ops.logits(logits if cap is None else ops.softcap(logits, cap))

    return build
