"""A head of one decoder layer that drafts from the target's hidden states, token by token.

After Li et al., EAGLE (arXiv 2401.15077), and EAGLE-3 (arXiv 2503.01840): it reads the token that
follows a row of the target together with the hidden states of that row, and, for tokens that are
only drafted, its own state instead; its logits are over the commonest tokens. The gate of the
sampled token over the fused vector is FSPAD's (arXiv 2408.15562), on request. Ours: token and
features are added instead of concatenated, after norms of their own, so that the layer is one of a
common decoder, which can start as a copy of the target's last one; and the matrix of the output is
made of rows of the target's own, which costs a trained file nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    decoder_layer,
    decoder_logits,
)
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.emitters.base import Part
from quickdraft.export.ops import Ops
from quickdraft.export.trained import Target, Trained
from quickdraft.export.weights import Weight, dense_weight

V = TypeVar("V")
Floats = NDArray[np.float32]

KIND = "eagle"
TOP = 16
"""Logits of a row that the drafter may see."""
_EPS = 1e-6
_LAYER_NORMS = ("attention_norm", "mlp_norm")


@dataclass(frozen=True)
class EagleSettings:
    """The shape of a head, as its trained file says it.

    hidden_states: streams of the target it reads, by number of layers passed. mlp_width: inner
    width of its MLP. vocab_size: tokens it can draft. sampling_width: inner width of FSPAD's
    feature sampling, 0 for none. name: of the part.
    """

    hidden_states: tuple[int, ...]
    mlp_width: int
    vocab_size: int
    sampling_width: int = 0
    name: str = KIND

    @classmethod
    def of(cls, values: Mapping[str, Any], num_layers: int) -> EagleSettings:
        """Check what a file says. num_layers: of the target.

        Raises:
            CheckpointError: a setting is missing, unknown, or impossible.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            raise CheckpointError(
                f"the settings of a head are {sorted(names)}, not {sorted(values)}"
            )
        layers = values["hidden_states"]
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
        for name, least in (("mlp_width", 1), ("vocab_size", 2), ("sampling_width", 0)):
            if type(values[name]) is not int or not least <= values[name] <= 1 << 24:
                raise CheckpointError(f"{name} of a head is {values[name]!r}")
        if not isinstance(values["name"], str):
            raise CheckpointError(f"name of a head is {values['name']!r}")
        return cls(**{**values, "hidden_states": tuple(layers)})


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
    shapes = tensor_shapes(target.spec, settings)
    own = {
        name: replace(weights.expect(name, shape), name=f"{settings.name}.{name}")
        for name, shape in shapes.items()
    }
    tokens = _tokens(weights, settings, target.spec.vocab_size)
    spec = _layer_spec(target.spec, settings)
    layer = _layer(own)
    decoder = DecoderWeights(
        embedding=target.weights.embedding,
        layers=(layer,),
        final_norm=Norm(own["final_norm"]),
        head=output_rows(target, tokens, settings.name),
    )
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
    token for each of its own.

    fuse: of the features, normed one by one; embed: of the token's embedding.
    """
    hidden, width = target.hidden_size, settings.mlp_width
    heads, kv_heads = target.layers[-1].num_heads, target.layers[-1].num_kv_heads
    q, kv, wide = heads * target.head_dim, kv_heads * target.head_dim, settings.sampling_width
    parts = len(settings.hidden_states) + 1
    shapes: dict[str, tuple[int, ...]] = {
        "features_norm": (hidden * parts,),
        "fuse": (hidden, hidden * parts),
        "embed": (hidden, hidden),
        "embed_norm": (hidden,),
        "query": (q, hidden),
        "key": (kv, hidden),
        "value": (kv, hidden),
        "output": (hidden, q),
        "gate": (width, hidden),
        "up": (width, hidden),
        "down": (hidden, width),
        "attention_norm": (hidden,),
        "mlp_norm": (hidden,),
        "final_norm": (hidden,),
    }
    if wide:
        shapes |= {"sampling_norm": (hidden,), "sampling_gate": (wide, hidden)}
        shapes |= {"sampling_up": (wide, hidden), "sampling_down": (hidden, wide)}
    return shapes


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
    rng = np.random.default_rng(seed)
    made: dict[str, NDArray[Any]] = {}
    for name, shape in tensor_shapes(target.spec, settings).items():
        if len(shape) == 1:
            made[name] = np.ones(shape, np.float32)
        else:
            made[name] = (rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
    for name in ("output", "down", "sampling_down"):
        if name in made:
            made[name] *= np.float32(0.1)
    streams, hidden = len(settings.hidden_states), target.spec.hidden_size
    each = np.ones((streams + 1, hidden), np.float32)
    if spread is not None:
        each[:] = np.maximum([*spread, spread[-1]], 1e-3)  # its own state is as the last stream
    made["features_norm"] = 1 / each.ravel()
    made["fuse"] *= np.float32(0.3)
    made["fuse"][:, (streams - 1) * hidden :] = np.concatenate([np.diag(each[-1])] * 2, axis=1)
    final = target.weights.final_norm
    if target.spec.norm == "rms" and final is not None and final.weight is not None:
        made["final_norm"] = final.weight.dense() + np.float32(target.spec.norm_offset)
    made["tokens"] = np.asarray(tokens, np.int32)
    return made


def as_weights(tensors: Mapping[str, NDArray[Any]]) -> WeightMap:
    """Arrays as what a file would hold."""
    return WeightMap({name: dense_weight(name, values) for name, values in tensors.items()})


def _layer_spec(target: DecoderSpec, settings: EagleSettings) -> DecoderSpec:
    """A common decoder layer, with heads and rope as the target's last one has them."""
    last = target.layers[-1]
    layer = LayerSpec(last.num_heads, last.num_kv_heads, settings.mlp_width, last.rope)
    return DecoderSpec(
        family=KIND,
        vocab_size=settings.vocab_size,
        hidden_size=target.hidden_size,
        head_dim=target.head_dim,
        context_length=target.context_length,
        layers=(layer,),
        norm_eps=_EPS,
        embedding_scale=target.embedding_scale,
        logit_softcap=target.logit_softcap,
    )


def _layer(own: Mapping[str, Weight]) -> LayerWeights:
    return LayerWeights(
        query=Linear(own["query"]),
        key=Linear(own["key"]),
        value=Linear(own["value"]),
        output=Linear(own["output"]),
        gate=Linear(own["gate"]),
        up=Linear(own["up"]),
        down=Linear(own["down"]),
        attention_norm=Norm(own["attention_norm"]),
        mlp_norm=Norm(own["mlp_norm"]),
    )


def output_rows(target: Target, tokens: NDArray[Any], name: str) -> Linear:
    """Rows of the target's output matrix for these tokens, as the head `name` has them."""
    head, index = target.weights.head, np.asarray(tokens, np.int64)
    bias = head.bias
    return Linear(
        head.weight.take_rows(index, f"{name}.head"),
        None if bias is None else bias.take_rows(index, f"{name}.head_bias"),
    )


def _tokens(weights: WeightMap, settings: EagleSettings, vocab_size: int) -> NDArray[np.int64]:
    """The target's token for each of the head's own."""
    tokens = np.asarray(weights.expect("tokens", (settings.vocab_size,)).dense(), np.int64)
    if tokens[0] < 0 or tokens[-1] >= vocab_size or (np.diff(tokens) <= 0).any():
        raise CheckpointError(
            f"the tokens of a head must ascend and be among the {vocab_size} of its target"
        )
    return tokens


def _builder(
    spec: DecoderSpec, weights: DecoderWeights, own: Mapping[str, Weight], parts: int
) -> Callable[[Ops[Any]], None]:
    def build(ops: Ops[V]) -> None:
        token = ops.embed(ops.tokens(), weights.embedding)
        if spec.embedding_scale is not None:
            token = ops.scale(token, spec.embedding_scale)
        token = ops.rms_norm(token, own["embed_norm"], _EPS)
        features = ops.layer_norm(ops.features(), own["features_norm"], None, _EPS, parts)
        x = ops.add(ops.linear(features, own["fuse"]), ops.linear(token, own["embed"]))
        if "sampling_gate" in own:
            x = ops.add(x, _sample(ops, own, x, token))
        x = decoder_layer(ops, spec, 0, weights.layers[0], x, ops.positions())
        ops.hidden_state(x, 1)
        wanted = ops.take_rows(x, ops.output_rows())
        ops.logits(decoder_logits(ops, spec, weights, wanted))

    return build


def _sample(ops: Ops[V], own: Mapping[str, Weight], x: V, token: V) -> V:
    """Let the token, which was drawn after the features were made, choose among them."""
    opened = ops.activate(ops.linear(token, own["sampling_gate"]), "silu")
    raised = ops.linear(ops.rms_norm(x, own["sampling_norm"], _EPS), own["sampling_up"])
    return ops.linear(ops.multiply(opened, raised), own["sampling_down"])
