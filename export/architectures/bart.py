"""BART: learned positions that start at row 2, layer norms after each sublayer, biases everywhere.

Lewis et al. 2019, arXiv 1910.13461. mBART, Marian and Whisper name their tensors alike, so what
reads them is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from quickdraft.export.architectures.config import Config
from quickdraft.export.architectures.decoder import Linear, Norm
from quickdraft.export.architectures.parts import ACTIVATIONS, take_linear, take_norm
from quickdraft.export.architectures.seq2seq import (
    AttentionWeights,
    LayerWeights,
    MlpWeights,
    Seq2SeqFamily,
    Seq2SeqSpec,
    Seq2SeqWeights,
    StackSpec,
    StackWeights,
    take_attention,
    take_head,
)
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.weights import Weight
from quickdraft.types import SourceSpec

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 50265,
    "d_model": 1024,
    "encoder_layers": 12,
    "decoder_layers": 12,
    "encoder_attention_heads": 16,
    "decoder_attention_heads": 16,
    "encoder_ffn_dim": 4096,
    "decoder_ffn_dim": 4096,
    "max_position_embeddings": 1024,
    "activation_function": "gelu",
    "scale_embedding": False,
    "tie_word_embeddings": True,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
NORM_EPS = 1e-5
# The embedding and the head again, under other names.
UNUSED = r"^model\.(encoder|decoder)\.embed_tokens\.weight$|^lm_head\.weight$"
_POSITION_OFFSET = 2


def read(config: Config) -> Seq2SeqSpec:
    """`model_type` bart."""
    length = config.integer("max_position_embeddings")
    return read_spec(config, "bart", SourceSpec(length), length, norm_after=True)


def read_spec(
    config: Config, family: str, source: SourceSpec, length: int, *, norm_after: bool
) -> Seq2SeqSpec:
    """The spec of a family with BART's keys. length: of the longest answer.

    Raises:
        UnsupportedModel: heads of encoder and decoder differ in width.
    """
    hidden, heads = config.integer("d_model"), config.integer("encoder_attention_heads")
    config.only("decoder_attention_heads", heads)
    if hidden % heads:
        raise config.wrong("encoder_attention_heads", heads, f"a divisor of 'd_model' {hidden}")
    stacks = [
        StackSpec(config.layers(f"{kind}_layers"), heads, heads, config.integer(f"{kind}_ffn_dim"))
        for kind in ("encoder", "decoder")
    ]
    return Seq2SeqSpec(
        family=family,
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        head_dim=hidden // heads,
        context_length=length,
        source=source,
        encoder=stacks[0],
        decoder=stacks[1],
        norm_eps=NORM_EPS,
        norm_after=norm_after,
        scale=(hidden // heads) ** -0.5,
        activation=config.choice("activation_function", ACTIVATIONS),
        embedding_scale=hidden**0.5 if config.flag("scale_embedding") else None,
        tied_output=config.flag("tie_word_embeddings"),
    )


def gather(spec: Seq2SeqSpec, weights: WeightMap) -> Seq2SeqWeights:
    """Tensors of BART; of mBART too, which norms once more after its stacks."""

    def stack(kind: str, shape: StackSpec) -> StackWeights:
        prefix = f"model.{kind}"
        length = spec.source.length if kind == "encoder" else spec.context_length
        embedding_norm = layer_norm(spec, weights, f"{prefix}.layernorm_embedding")
        last = None if spec.norm_after else layer_norm(spec, weights, f"{prefix}.layer_norm")
        return StackWeights(
            layers=take_layers(spec, shape, weights, prefix),
            embedding=weights.expect("model.shared.weight", (spec.vocab_size, spec.hidden_size)),
            positions=_positions(spec, weights, f"{prefix}.embed_positions.weight", length),
            embedding_norm=embedding_norm,
            final_norm=last,
        )

    return Seq2SeqWeights(
        stack("encoder", spec.encoder),
        stack("decoder", spec.decoder),
        take_head(spec, weights, "model.shared.weight", "lm_head.weight", "final_logits_bias"),
    )


def _positions(spec: Seq2SeqSpec, weights: WeightMap, name: str, length: int) -> Weight:
    stored = weights.expect(name, (length + _POSITION_OFFSET, spec.hidden_size))
    return stored.take_rows(slice(_POSITION_OFFSET, None), name)


def layer_norm(spec: Seq2SeqSpec, weights: WeightMap, name: str) -> Norm:
    """A norm with scale and shift."""
    return take_norm(weights, name, spec.hidden_size, bias=True)


def take_layers(
    spec: Seq2SeqSpec, stack: StackSpec, weights: WeightMap, prefix: str, *, key_bias: bool = True
) -> tuple[LayerWeights, ...]:
    """The layers under `prefix`; those of a decoder have cross-attention. key_bias: whether keys
    have one, as queries and values do."""

    def linear(name: str, rows: int, columns: int) -> Linear:
        bias = key_bias or not name.endswith(".k_proj")
        return take_linear(weights, name, rows, columns, bias)

    def layer(base: str) -> LayerWeights:
        def attention(kind: str) -> AttentionWeights:
            take = partial(take_attention, spec, stack, linear, f"{base}.{kind}.")
            names = ("q_proj", "k_proj", "v_proj", "out_proj")
            return take(names, layer_norm(spec, weights, f"{base}.{kind}_layer_norm"))

        return LayerWeights(
            attention("self_attn"),
            attention("encoder_attn") if prefix.endswith("decoder") else None,
            MlpWeights(
                gate=None,
                up=linear(f"{base}.fc1", stack.mlp_width, spec.hidden_size),
                down=linear(f"{base}.fc2", spec.hidden_size, stack.mlp_width),
                norm=layer_norm(spec, weights, f"{base}.final_layer_norm"),
            ),
        )

    return tuple(layer(f"{prefix}.layers.{index}") for index in range(stack.num_layers))


FAMILY = Seq2SeqFamily(read, gather, DEFAULTS, UNUSED)
