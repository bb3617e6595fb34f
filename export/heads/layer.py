"""Heads with a decoder layer of their own over the target's hidden states: what they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import CheckpointError
from quickdraft.export.architectures.decoder import (
    DecoderSpec,
    DecoderWeights,
    LayerSpec,
    LayerWeights,
    Linear,
    Norm,
)
from quickdraft.export.heads.parts import EPS, norm_scale, trimmed_head
from quickdraft.export.ops import Ops
from quickdraft.export.trained import Target
from quickdraft.export.weights import Weight

V = TypeVar("V")
Floats = NDArray[np.float32]
Shapes = dict[str, tuple[int, ...]]

_LINEARS = ("query", "key", "value", "output", "gate", "up", "down")
_NORMS = ("attention_norm", "mlp_norm")
SMALL = {"output", "down"}
"""Words in the names of matrices that add to a stream: they begin small."""


def streams_of(values: Mapping[str, Any], num_layers: int) -> tuple[int, ...]:
    """The streams of the target that a head reads, by number of layers passed.

    Raises:
        CheckpointError: a trained file says something impossible. num_layers: of the target.
    """
    layers = values.get("hidden_states")
    sound = (
        isinstance(layers, list | tuple)
        and 0 < len(layers) <= 4
        and all(type(layer) is int and 0 <= layer <= num_layers for layer in layers)
        and list(layers) == sorted(set(layers))
    )
    if not sound:
        raise CheckpointError(
            f"hidden_states of a head are {layers!r}; they are one to four numbers of layers "
            f"of its target, which has {num_layers}, in ascending order"
        )
    return tuple(layers or ())


def layer_shapes(target: DecoderSpec, mlp_width: int) -> Shapes:
    """Of the weights of a decoder layer with heads as the target's last one has them."""
    hidden, last = target.hidden_size, target.layers[-1]
    q, kv = last.num_heads * target.head_dim, last.num_kv_heads * target.head_dim
    return {
        "query": (q, hidden),
        "key": (kv, hidden),
        "value": (kv, hidden),
        "output": (hidden, q),
        "gate": (mlp_width, hidden),
        "up": (mlp_width, hidden),
        "down": (hidden, mlp_width),
        "attention_norm": (hidden,),
        "mlp_norm": (hidden,),
    }


def layer_spec(kind: str, target: DecoderSpec, mlp_width: int, vocab_size: int) -> DecoderSpec:
    """A common decoder layer, with heads and rope as the target's last one has them."""
    last = target.layers[-1]
    return DecoderSpec(
        family=kind,
        vocab_size=vocab_size,
        hidden_size=target.hidden_size,
        head_dim=target.head_dim,
        context_length=target.context_length,
        layers=(LayerSpec(last.num_heads, last.num_kv_heads, mlp_width, last.rope),),
        norm_eps=EPS,
        embedding_scale=target.embedding_scale,
        logit_softcap=target.logit_softcap,
    )


def layer_weights(
    target: Target, own: Mapping[str, Weight], tokens: NDArray[np.int64], name: str
) -> DecoderWeights:
    """The layer among a head's own weights, its `final_norm` if there is one, and of the target the
    embedding and the rows of the output matrix that are `tokens`."""
    linears: dict[str, Any] = {key: Linear(own[key]) for key in _LINEARS}
    norms: dict[str, Any] = {key: Norm(own[key]) for key in _NORMS}
    return DecoderWeights(
        embedding=target.weights.embedding,
        layers=(LayerWeights(**linears, **norms),),
        final_norm=Norm(own["final_norm"]) if "final_norm" in own else None,
        head=trimmed_head(target.weights.head, tokens, name),
    )


def embedded(ops: Ops[V], spec: DecoderSpec, weights: DecoderWeights) -> V:
    """The embedding of each row's token, as the target has it."""
    token = ops.embed(ops.tokens(), weights.embedding)
    return token if spec.embedding_scale is None else ops.scale(token, spec.embedding_scale)


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, NDArray[Any]]:
    """Weights to train from: norms of ones, matrices random, small where they add to a stream."""
    rng = np.random.default_rng(seed)
    made: dict[str, NDArray[Any]] = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            made[name] = np.ones(shape, np.float32)
        else:
            made[name] = (rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
        if not SMALL.isdisjoint(name.split("_")):
            made[name] *= np.float32(0.1)
    return made


def final_norm(target: Target) -> Floats:
    """float32 [hidden]: a head's last norm, to start from that of the target."""
    if target.spec.norm != "rms":
        return np.ones(target.spec.hidden_size, np.float32)
    return norm_scale(target)
