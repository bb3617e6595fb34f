"""Encoder-decoder models: what tells them apart as data, and the two functions that build them.

A family file reads its config into a `Seq2SeqSpec` and its tensors into `Seq2SeqWeights`;
`build_encoder` and `build_target` write the model against the op protocol. Which norms, biases,
gates and positions there are is said by the weights that are there; everything else is in the spec.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

from quickdraft.errors import CheckpointError
from quickdraft.export.architectures.base import open_config, refuse_left_over
from quickdraft.export.architectures.config import Config
from quickdraft.export.architectures.decoder import Linear, Norm
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.ops import Activation, Attention, Ops, RelativeBias, Rope
from quickdraft.export.weights import Weight, of_vocabulary
from quickdraft.types import ModelSpec, SourceSpec

V = TypeVar("V")


@dataclass(frozen=True)
class StackSpec:
    """An encoder or a decoder: layers that are all alike. mlp_width: inner width of the MLP."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    mlp_width: int


@dataclass(frozen=True)
class Seq2SeqSpec:
    """An encoder-decoder model as data.

    context_length: longest answer. norm: kind of every norm. norm_after: a sublayer is normed after
    it was added to the stream (BART), not what it reads (T5). scale: factor of attention scores.
    rope: of queries and keys of self-attention, None where positions are something else.
    relative: buckets and largest distance of relative biases, None where there are none.
    embedding_scale: factor of embedded tokens; output_scale: of what the head reads.
    """

    family: str
    vocab_size: int
    hidden_size: int
    head_dim: int
    context_length: int
    source: SourceSpec
    encoder: StackSpec
    decoder: StackSpec
    norm_eps: float
    norm: Literal["rms", "layer"] = "layer"
    norm_after: bool = False
    scale: float = 1.0
    activation: Activation = "gelu"
    gated: bool = False
    relative: tuple[int, int] | None = None
    rope: Rope | None = None
    embedding_scale: float | None = None
    output_scale: float | None = None
    tied_output: bool = True

    def model_spec(self, num_parameters: int = 0) -> ModelSpec:
        """The facts that go into the manifest: those of the decoder, and the source."""
        facts = self._facts(self.decoder, self.context_length)
        return replace(facts, num_parameters=num_parameters, source=self.source)

    def encoder_spec(self) -> ModelSpec:
        """The facts of the encoder alone."""
        return self._facts(self.encoder, self.source.length)

    def _facts(self, stack: StackSpec, length: int) -> ModelSpec:
        return ModelSpec(
            family=self.family,
            num_layers=stack.num_layers,
            hidden_size=self.hidden_size,
            vocab_size=self.vocab_size,
            context_length=length,
            num_heads=(stack.num_heads,) * stack.num_layers,
            num_kv_heads=(stack.num_kv_heads,) * stack.num_layers,
            head_dim=self.head_dim,
            windows=(None,) * stack.num_layers,
        )


@dataclass(frozen=True)
class AttentionWeights:
    """Projections of self- or cross-attention. norm: of the sublayer, see Seq2SeqSpec.norm_after.
    query_norm, key_norm: over each head, None where there is none."""

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    norm: Norm
    query_norm: Norm | None = None
    key_norm: Norm | None = None


@dataclass(frozen=True)
class MlpWeights:
    """gate is None for a plain MLP. norm: as in AttentionWeights."""

    gate: Linear | None
    up: Linear
    down: Linear
    norm: Norm


@dataclass(frozen=True)
class LayerWeights:
    """One layer. cross: attention to the memory, None in an encoder."""

    attention: AttentionWeights
    cross: AttentionWeights | None
    mlp: MlpWeights


@dataclass(frozen=True)
class Convolution:
    """weight [out, in, width], bias [out]."""

    weight: Weight
    bias: Weight
    stride: int


@dataclass(frozen=True)
class StackWeights:
    """An encoder or a decoder. embedding: None where it reads features. convolutions: over these,
    each followed by the activation. positions: [length, hidden], row = position. embedding_norm:
    before the first layer. relative: of the scores of every layer."""

    layers: tuple[LayerWeights, ...]
    embedding: Weight | None = None
    convolutions: tuple[Convolution, ...] = ()
    positions: Weight | None = None
    embedding_norm: Norm | None = None
    final_norm: Norm | None = None
    relative: RelativeBias | None = None

    def __post_init__(self) -> None:
        """Mark what has a row for every token."""
        if self.embedding is not None:
            object.__setattr__(self, "embedding", of_vocabulary(self.embedding))


@dataclass(frozen=True)
class Seq2SeqWeights:
    """All weights of a model."""

    encoder: StackWeights
    decoder: StackWeights
    head: Linear

    def __post_init__(self) -> None:
        """Mark what has a row for every token."""
        head = replace(self.head, weight=of_vocabulary(self.head.weight))
        object.__setattr__(self, "head", head)


@dataclass(frozen=True)
class Seq2SeqFamily:
    """A family of encoder-decoder models; its fields as those of architectures.base.Family."""

    read_config: Callable[[Config], Seq2SeqSpec]
    gather: Callable[[Seq2SeqSpec, WeightMap], Seq2SeqWeights]
    defaults: Mapping[str, Any]
    unused: str | None = None

    def read(self, config: Mapping[str, Any], where: str = "config.json") -> Seq2SeqSpec:
        """The architecture that a config describes; `where` names it in errors.

        Raises:
            CheckpointError: a key is missing or has a value it cannot have.
            UnsupportedModel: a value that is not implemented; the message names key and value.
        """
        reader = open_config(config, self.defaults, where)
        reader.only("is_encoder_decoder", True)
        spec = self.read_config(reader)
        for stack in (spec.encoder, spec.decoder):
            if stack.num_heads % stack.num_kv_heads:
                raise CheckpointError(
                    f"{where}: there are {stack.num_heads} heads over {stack.num_kv_heads} KV "
                    "heads; the first must be a multiple of the second"
                )
        return spec

    def collect(self, spec: Seq2SeqSpec, weights: WeightMap) -> Seq2SeqWeights:
        """All weights of a checkpoint in their places.

        Raises:
            CheckpointError: a tensor is missing or has the wrong shape.
            UnsupportedModel: tensors are left over, so the model is not the one we know.
        """
        gathered = self.gather(spec, weights)
        refuse_left_over(weights, spec.family, self.unused)
        return gathered


def build_encoder(ops: Ops[V], spec: Seq2SeqSpec, weights: Seq2SeqWeights) -> None:
    """Write the encoder: tokens or features to the memory of every layer of the decoder."""
    stack = weights.encoder
    positions = ops.positions()
    if stack.embedding is None:
        x = ops.features()
        for each in stack.convolutions:
            x = ops.activate(ops.conv1d(x, each.weight, each.bias, each.stride), spec.activation)
    else:
        x = _embed(ops, spec, stack.embedding)
    x = _place(ops, spec, stack, x, positions)
    ops.hidden_state(x, 0)
    for index, layer in enumerate(stack.layers):
        attention = _attention(spec, spec.encoder, index, stack.relative)
        attend = partial(ops.encode_attend, attention=attention)
        value = _pair(layer.attention.value)
        x = _self_attend(ops, spec, layer.attention, x, positions, attention, attend, value)
        x = _mlp(ops, spec, layer.mlp, x)
        ops.hidden_state(x, index + 1)
    if stack.final_norm is not None:
        x = _norm(ops, spec, x, stack.final_norm)
    for index, layer in enumerate(weights.decoder.layers):
        _stage(ops, spec, index, layer, x)


def _stage(ops: Ops[V], spec: Seq2SeqSpec, index: int, layer: LayerWeights, x: V) -> None:
    """Project what the encoder ends in [rows, hidden] to the memory of a layer of the decoder."""
    cross, attention = layer.cross, _attention(spec, spec.decoder, index)
    assert cross is not None  # every layer of a decoder has it  # noqa: S101
    k, v = ops.linears(x, [_pair(cross.key), _sensitive(cross.value)])
    if cross.key_norm is not None:
        k = _norm(ops, spec, k, cross.key_norm, attention.num_kv_heads)
    ops.stage(k, v, attention)


def build_target(
    ops: Ops[V], spec: Seq2SeqSpec, weights: Seq2SeqWeights, memory: Sequence[int] | None = None
) -> None:
    """Write the decoder: token ids to logits, with a hidden state after every layer. memory: which
    layer of it each layer reads, None for its own."""
    stack = weights.decoder
    assert stack.embedding is not None  # a decoder reads tokens  # noqa: S101
    positions = ops.positions()
    x = _place(ops, spec, stack, _embed(ops, spec, stack.embedding), positions)
    ops.hidden_state(x, 0)
    for index, layer in enumerate(stack.layers):
        attention = _attention(spec, spec.decoder, index, stack.relative)
        attend = partial(ops.attend, attention=attention)
        value = _sensitive(layer.attention.value)
        x = _self_attend(ops, spec, layer.attention, x, positions, attention, attend, value)
        read = replace(attention, relative=None, layer=index if memory is None else memory[index])
        x = _cross_attend(ops, spec, layer.cross, x, read)
        x = _mlp(ops, spec, layer.mlp, x)
        ops.hidden_state(x, index + 1)
    x = ops.take_rows(x, ops.output_rows())
    if stack.final_norm is not None:
        x = _norm(ops, spec, x, stack.final_norm)
    if spec.output_scale is not None:
        x = ops.scale(x, spec.output_scale)
    ops.logits(_linear(ops, x, weights.head))


def _embed(ops: Ops[V], spec: Seq2SeqSpec, table: Weight) -> V:
    x = ops.embed(ops.tokens(), table)
    return x if spec.embedding_scale is None else ops.scale(x, spec.embedding_scale)


def _place(ops: Ops[V], spec: Seq2SeqSpec, stack: StackWeights, x: V, positions: V) -> V:
    """The stream as the first layer reads it."""
    if stack.positions is not None:
        x = ops.add(x, ops.embed(positions, stack.positions))
    return x if stack.embedding_norm is None else _norm(ops, spec, x, stack.embedding_norm)


def _attention(
    spec: Seq2SeqSpec, stack: StackSpec, index: int, relative: RelativeBias | None = None
) -> Attention:
    return Attention(
        layer=index,
        num_heads=stack.num_heads,
        num_kv_heads=stack.num_kv_heads,
        head_dim=spec.head_dim,
        scale=spec.scale,
        relative=relative,
    )


def _self_attend(
    ops: Ops[V],
    spec: Seq2SeqSpec,
    weights: AttentionWeights,
    x: V,
    positions: V,
    attention: Attention,
    attend: Callable[[V, V, V], V],
    value: tuple[Weight, Weight | None],
) -> V:
    read = x if spec.norm_after else _norm(ops, spec, x, weights.norm)
    pairs = [_pair(weights.query), _pair(weights.key), value]
    q, k, v = ops.linears(read, pairs)
    if weights.query_norm is not None:
        q = _norm(ops, spec, q, weights.query_norm, attention.num_heads)
    if weights.key_norm is not None:
        k = _norm(ops, spec, k, weights.key_norm, attention.num_kv_heads)
    if spec.rope is not None:
        q = ops.rope(q, positions, spec.rope, attention.num_heads)
        k = ops.rope(k, positions, spec.rope, attention.num_kv_heads)
    return _join(ops, spec, x, _linear(ops, attend(q, k, v), weights.output), weights.norm)


def _cross_attend(
    ops: Ops[V], spec: Seq2SeqSpec, weights: AttentionWeights | None, x: V, attention: Attention
) -> V:
    assert weights is not None  # every layer of a decoder has it  # noqa: S101
    read = x if spec.norm_after else _norm(ops, spec, x, weights.norm)
    q = _linear(ops, read, weights.query)
    if weights.query_norm is not None:
        q = _norm(ops, spec, q, weights.query_norm, attention.num_heads)
    mixed = ops.cross_attend(q, attention)
    return _join(ops, spec, x, _linear(ops, mixed, weights.output), weights.norm)


def _mlp(ops: Ops[V], spec: Seq2SeqSpec, weights: MlpWeights, x: V) -> V:
    read = x if spec.norm_after else _norm(ops, spec, x, weights.norm)
    gate, up, down = weights.gate, weights.up, weights.down
    if gate is not None:
        biases = (gate.bias, up.bias, down.bias)
        kind = spec.activation
        inner = ops.gated_mlp(read, gate.weight, up.weight, down.weight, kind, biases)
    else:
        inner = _linear(ops, ops.activate(_linear(ops, read, up), spec.activation), down)
    return _join(ops, spec, x, inner, weights.norm)


def _join(ops: Ops[V], spec: Seq2SeqSpec, x: V, inner: V, norm: Norm) -> V:
    """The stream after a sublayer."""
    joined = ops.add(x, inner)
    return _norm(ops, spec, joined, norm) if spec.norm_after else joined


def _norm(ops: Ops[V], spec: Seq2SeqSpec, x: V, norm: Norm, heads: int = 1) -> V:
    if spec.norm == "layer":
        return ops.layer_norm(x, norm.weight, norm.bias, spec.norm_eps, heads)
    return ops.rms_norm(x, norm.weight, spec.norm_eps, heads)


def _linear(ops: Ops[V], x: V, linear: Linear) -> V:
    return ops.linear(x, linear.weight, linear.bias)


def _pair(linear: Linear) -> tuple[Weight, Weight | None]:
    return linear.weight, linear.bias


def _sensitive(linear: Linear) -> tuple[Weight, Weight | None]:
    return replace(linear.weight, sensitive=True), linear.bias


def take_head(
    spec: Seq2SeqSpec, weights: WeightMap, embedding: str, name: str, bias: str | None = None
) -> Linear:
    """The output projection: the embedding where they are tied. bias: the name of one [1,
    vocabulary], which may be absent."""
    matrix = embedding if spec.tied_output else name
    linear = Linear(weights.expect(matrix, (spec.vocab_size, spec.hidden_size)))
    if bias is None or bias not in weights:
        return linear
    stored = weights.expect(bias, (1, spec.vocab_size))
    return replace(linear, bias=stored.map(lambda x: x.reshape(-1), (spec.vocab_size,), bias))


def take_attention(
    spec: Seq2SeqSpec,
    stack: StackSpec,
    linear: Callable[[str, int, int], Linear],
    prefix: str,
    names: tuple[str, str, str, str],
    norm: Norm,
) -> AttentionWeights:
    """Projections under the prefix and `names` (query, key, value, output), each taken by
    `linear(name, rows, columns)`."""
    query, key, value, output = (f"{prefix}{name}" for name in names)
    wide, narrow = (heads * spec.head_dim for heads in (stack.num_heads, stack.num_kv_heads))
    return AttentionWeights(
        linear(query, wide, spec.hidden_size),
        linear(key, narrow, spec.hidden_size),
        linear(value, narrow, spec.hidden_size),
        linear(output, spec.hidden_size, wide),
        norm,
    )
