"""Decoder-only models: what tells them apart as data, and the one function that builds them.

A family file reads its config into a `DecoderSpec` and its tensors into `DecoderWeights`;
`build_decoder` writes the model against the op protocol. Which norms, biases and gates a layer has
is said by the weights that are there; everything else is in the spec.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from quickdraft.export.ops import Activation, Attention, Ops, Rope
from quickdraft.export.weights import Weight, of_vocabulary
from quickdraft.types import ModelSpec

V = TypeVar("V")


@dataclass(frozen=True)
class Linear:
    """weight [out, in], bias [out] or None."""

    weight: Weight
    bias: Weight | None = None


@dataclass(frozen=True)
class Norm:
    """Scale and shift; a None scale is all ones."""

    weight: Weight | None
    bias: Weight | None = None


@dataclass(frozen=True)
class LayerSpec:
    """What may differ between layers. rope None: this layer knows no positions. window: as in
    ModelSpec. mlp_width: inner width of the MLP."""

    num_heads: int
    num_kv_heads: int
    mlp_width: int
    rope: Rope | None
    window: int | None = None


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder as data.

    norm: kind of every norm. norm_offset is added to the scale of every norm (Gemma stores
    scale - 1). attention_bias: whether query, key, value and output have one. query_norm: norm
    of queries and keys, over each head or over the full width. parallel: attention and MLP read
    the same stream and are added together.
    """

    family: str
    vocab_size: int
    hidden_size: int
    head_dim: int
    context_length: int
    layers: tuple[LayerSpec, ...]
    norm_eps: float
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0
    norm_bias: bool = False
    attention_bias: tuple[bool, bool, bool, bool] = (False, False, False, False)
    mlp_bias: bool = False
    query_norm: Literal["head", "full"] | None = None
    activation: Activation = "silu"
    parallel: bool = False
    tied_output: bool = False
    attention_scale: float | None = None
    attention_softcap: float | None = None
    embedding_scale: float | None = None
    logit_softcap: float | None = None

    @property
    def scale(self) -> float:
        """Factor of the attention scores; 1 / sqrt(head_dim) unless the family says otherwise."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    def model_spec(self, num_parameters: int = 0) -> ModelSpec:
        """The facts that go into the manifest."""
        return ModelSpec(
            family=self.family,
            num_layers=len(self.layers),
            hidden_size=self.hidden_size,
            vocab_size=self.vocab_size,
            context_length=self.context_length,
            num_heads=tuple(layer.num_heads for layer in self.layers),
            num_kv_heads=tuple(layer.num_kv_heads for layer in self.layers),
            head_dim=self.head_dim,
            windows=tuple(self.window(index) for index in range(len(self.layers))),
            num_parameters=num_parameters,
        )

    def window(self, index: int) -> int | None:
        """The window of a layer; one as long as the context never hides anything."""
        window = self.layers[index].window
        return window if window is not None and window < self.context_length else None


@dataclass(frozen=True)
class LayerWeights:
    """Weights of one layer. Norms before (`*_norm`) and after (`*_post_norm`) attention and MLP
    are None where the family has none; gate is None for a plain MLP."""

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    gate: Linear | None
    up: Linear
    down: Linear
    attention_norm: Norm | None = None
    attention_post_norm: Norm | None = None
    mlp_norm: Norm | None = None
    mlp_post_norm: Norm | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None


@dataclass(frozen=True)
class DecoderWeights:
    """All weights of a decoder. positions: [context, hidden], row = position."""

    embedding: Weight
    layers: tuple[LayerWeights, ...]
    final_norm: Norm | None
    head: Linear
    positions: Weight | None = None

    def __post_init__(self) -> None:
        """Mark what has a row for every token."""
        head = replace(self.head, weight=of_vocabulary(self.head.weight))
        object.__setattr__(self, "embedding", of_vocabulary(self.embedding))
        object.__setattr__(self, "head", head)


def build_decoder(ops: Ops[V], spec: DecoderSpec, weights: DecoderWeights) -> None:
    """Write the model: token ids to logits, with a hidden state after every layer."""
    positions = ops.positions()
    x = decoder_embedding(ops, spec, weights, positions)
    ops.hidden_state(x, 0)
    for index, layer in enumerate(weights.layers):
        x = decoder_layer(ops, spec, index, layer, x, positions)
        ops.hidden_state(x, index + 1)
    wanted = ops.take_rows(x, ops.output_rows())
    ops.logits(decoder_logits(ops, spec, weights, wanted))


def decoder_embedding(ops: Ops[V], spec: DecoderSpec, weights: DecoderWeights, positions: V) -> V:
    """The residual stream [n, hidden] before the first layer."""
    x = ops.embed(ops.tokens(), weights.embedding)
    if spec.embedding_scale is not None:
        x = ops.scale(x, spec.embedding_scale)
    if weights.positions is not None:
        x = ops.add(x, ops.embed(positions, weights.positions))
    return x


def decoder_logits(ops: Ops[V], spec: DecoderSpec, weights: DecoderWeights, x: V) -> V:
    """From the residual stream [m, hidden] after the last layer to logits [m, vocabulary]."""
    normed = decoder_norm(ops, spec, x, weights.final_norm)
    logits = _linear(ops, normed, weights.head)
    return logits if spec.logit_softcap is None else ops.softcap(logits, spec.logit_softcap)


def decoder_layer(
    ops: Ops[V],
    spec: DecoderSpec,
    index: int,
    layer: LayerWeights,
    x: V,
    positions: V,
    projected: Callable[[tuple[V, V]], None] | None = None,
) -> V:
    """The residual stream [n, hidden] one layer on.

    index: which of `spec.layers`, and of the cache, the layer is. projected: is shown the keys and
    values as they are projected: before their norms, before rope.
    """
    normed = decoder_norm(ops, spec, x, layer.attention_norm)
    mixed = decoder_attention(ops, spec, index, layer, normed, positions, projected)
    mixed = decoder_norm(ops, spec, mixed, layer.attention_post_norm)
    if spec.parallel:
        # Without a norm of its own, the MLP shares that of attention.
        own = normed if layer.mlp_norm is None else decoder_norm(ops, spec, x, layer.mlp_norm)
        return ops.add(x, ops.add(mixed, _mlp(ops, spec, layer, own)))
    x = ops.add(x, mixed)
    inner = _mlp(ops, spec, layer, decoder_norm(ops, spec, x, layer.mlp_norm))
    return ops.add(x, decoder_norm(ops, spec, inner, layer.mlp_post_norm))


def decoder_cache(
    ops: Ops[V], spec: DecoderSpec, index: int, layer: LayerWeights, x: V, positions: V
) -> None:
    """Put a layer's keys and values in the cache without going on from it; as `decoder_layer`."""
    normed = decoder_norm(ops, spec, x, layer.attention_norm)
    _attended(ops, spec, index, layer, normed, positions, None)


def decoder_attention(
    ops: Ops[V],
    spec: DecoderSpec,
    index: int,
    layer: LayerWeights,
    x: V,
    positions: V,
    projected: Callable[[tuple[V, V]], None] | None = None,
) -> V:
    """What attention of a layer makes of x [n, hidden], the normed stream; arguments as of
    `decoder_layer`."""
    attended = _attended(ops, spec, index, layer, x, positions, projected)
    return _linear(ops, attended, layer.output)


def _attended(
    ops: Ops[V],
    spec: DecoderSpec,
    index: int,
    layer: LayerWeights,
    x: V,
    positions: V,
    projected: Callable[[tuple[V, V]], None] | None,
) -> V:
    """The same before the output projection."""
    shape = spec.layers[index]
    value = replace(layer.value.weight, sensitive=True)
    pairs = [(part.weight, part.bias) for part in (layer.query, layer.key)]
    q, k, v = ops.linears(x, [*pairs, (value, layer.value.bias)])
    if projected is not None:
        projected((k, v))
    heads = shape.num_heads if spec.query_norm == "head" else 1
    q = decoder_norm(ops, spec, q, layer.query_norm, heads)
    if shape.rope is not None:
        q = ops.rope(q, positions, shape.rope, shape.num_heads)
    k = decoder_keys(ops, spec, index, layer, k, positions)
    return ops.attend(q, k, v, layer_attention(spec, index))


def decoder_keys(
    ops: Ops[V], spec: DecoderSpec, index: int, layer: LayerWeights, k: V, positions: V
) -> V:
    """Projected keys [n, kv_heads * head_dim] as the cache has them: normed, then rotated."""
    shape = spec.layers[index]
    heads = shape.num_kv_heads if spec.query_norm == "head" else 1
    k = decoder_norm(ops, spec, k, layer.key_norm, heads)
    return k if shape.rope is None else ops.rope(k, positions, shape.rope, shape.num_kv_heads)


def layer_attention(spec: DecoderSpec, index: int) -> Attention:
    """How the layer `index` attends, and what its cache looks like."""
    shape = spec.layers[index]
    return Attention(
        layer=index,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=spec.head_dim,
        scale=spec.scale,
        window=spec.window(index),
        softcap=spec.attention_softcap,
    )


def _mlp(ops: Ops[V], spec: DecoderSpec, layer: LayerWeights, x: V) -> V:
    gate, up, down = layer.gate, layer.up, layer.down
    if gate is not None:
        biases = (gate.bias, up.bias, down.bias)
        return ops.gated_mlp(x, gate.weight, up.weight, down.weight, spec.activation, biases)
    return _linear(ops, ops.activate(_linear(ops, x, up), spec.activation), down)


def _linear(ops: Ops[V], x: V, linear: Linear) -> V:
    return ops.linear(x, linear.weight, linear.bias)


def decoder_norm(ops: Ops[V], spec: DecoderSpec, x: V, norm: Norm | None, heads: int = 1) -> V:
    """The kind of norm that the decoder has, over each of `heads` parts; x where there is none."""
    if norm is None:
        return x
    weight = norm.weight
    if weight is not None and spec.norm_offset:
        offset = spec.norm_offset
        weight = weight.map(
            lambda values: values + offset, weight.shape, f"{weight.name}+{offset:g}"
        )
    if spec.norm == "layer":
        return ops.layer_norm(x, weight, norm.bias, spec.norm_eps, heads)
    return ops.rms_norm(x, weight, spec.norm_eps, heads)
