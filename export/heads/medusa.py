"""Heads that each say a token further ahead from the same hidden state, all in one step.

After Cai et al., Medusa (arXiv 2401.10774, section 2.1): head k adds a block of its own to the
target's last hidden state, h + silu(W h + b), and says the token k places after the next one. Ours:
all heads share the target's output matrix, trimmed to the commonest tokens, which is read once for
all of them; on small models with large vocabularies the paper's matrices, one a head, would weigh
more than the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from quickdraft.export.architectures.decoder import DecoderSpec, Linear, Norm, decoder_norm
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.emitters.base import Part
from quickdraft.export.heads.parts import (
    TOP,
    HeadsSettings,
    own_weights,
    rowwise_spec,
    token_ids,
    trimmed_head,
)
from quickdraft.export.ops import Ops
from quickdraft.export.trained import Target, Trained
from quickdraft.export.weights import Weight

V = TypeVar("V")

KIND = "medusa"


def attach_medusa(trained: Trained, target: Target) -> Sequence[Part]:
    """The part of trained heads; see export.trained.Attach.

    Raises:
        CheckpointError: their weights or settings do not fit the target.
    """
    settings = HeadsSettings.of(trained.settings)
    target.hidden_states.add(len(target.spec.layers))
    return [medusa_part(target, settings, trained.weights)]


def medusa_part(target: Target, settings: HeadsSettings, weights: WeightMap) -> Part:
    """The graph of heads with these weights (names and shapes: `tensor_shapes`). Its features are
    the target's stream after the last layer; of a step of n rows, logits number k * n + r are those
    of head k at row r.

    Raises:
        CheckpointError: a weight is missing or has another shape.
    """
    own = own_weights(weights, tensor_shapes(target.spec, settings), settings.name)
    tokens = token_ids(weights, settings.vocab_size, target.spec.vocab_size)
    head = trimmed_head(target.weights.head, tokens, settings.name)
    return Part(
        role="drafter",
        name=settings.name,
        build=_builder(target.spec, target.weights.final_norm, own, head, settings.heads),
        spec=rowwise_spec(KIND, target, settings.vocab_size),
        features=target.spec.hidden_size,
        top=TOP,
        token_map=weights["tokens"],
        details={
            "kind": KIND,
            "hidden_states": [len(target.spec.layers)],
            "heads": settings.heads,
        },
    )


def tensor_shapes(target: DecoderSpec, settings: HeadsSettings) -> dict[str, tuple[int, ...]]:
    """Their own float weights. Besides there is `tokens`, int32 [vocab_size], ascending: the
    target's token for each of their own."""
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(1, settings.heads + 1):
        shapes[f"block_{number}"] = (target.hidden_size, target.hidden_size)
        shapes[f"bias_{number}"] = (target.hidden_size,)
    return shapes


def initial_weights(
    target: Target, settings: HeadsSettings, tokens: NDArray[np.int32], seed: int = 0
) -> dict[str, NDArray[Any]]:
    """Weights to train from, as in the paper: zeros, so that every head begins by saying what the
    target says next. tokens: int32 [vocab_size], ascending."""
    del seed
    shapes = tensor_shapes(target.spec, settings)
    made: dict[str, NDArray[Any]] = {name: np.zeros(s, np.float32) for name, s in shapes.items()}
    made["tokens"] = np.asarray(tokens, np.int32)
    return made


def _builder(
    spec: DecoderSpec, norm: Norm | None, own: Mapping[str, Weight], head: Linear, heads: int
) -> Callable[[Ops[Any]], None]:
    def build(ops: Ops[V]) -> None:
        x = decoder_norm(ops, spec, ops.features(), norm)
        each = []
        for number in range(1, heads + 1):
            opened = ops.linear(x, own[f"block_{number}"], own[f"bias_{number}"])
            each.append(ops.add(x, ops.activate(opened, "silu")))
        wanted = ops.take_rows(ops.stack(each), ops.output_rows())
        logits = ops.linear(wanted, head.weight, head.bias)
        cap = spec.logit_softcap
        ops.logits(logits if cap is None else ops.softcap(logits, cap))

    return build
