"""T5 and its kin (v1.1, flan, mT5): relative biases shared by all layers, RMS norms, no biases.

Raffel et al. 2020, arXiv 1910.10683; scores are not scaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from quickdraft.export.architectures.config import Config
from quickdraft.export.architectures.decoder import Linear, Norm
from quickdraft.export.architectures.parts import take_linear, take_norm
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
from quickdraft.export.ops import Activation, RelativeBias
from quickdraft.types import SourceSpec

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "tie_word_embeddings": True,
    "decoder_start_token_id": 0,
}
MULTILINGUAL: Mapping[str, Any] = {
    **DEFAULTS,
    "vocab_size": 250112,
    "d_ff": 1024,
    "num_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}

_FORMS: Mapping[str, Activation] = {
    "relu": "relu",
    "gated-relu": "relu",
    "gated-gelu": "gelu_tanh",
    "gated-silu": "silu",
}
_LONGEST = 1 << 14
"""Relative positions have no end; somewhere there must be one, or memory had none."""
# The embedding and the head again, under other names, and a bias that nothing reads.
_UNUSED = (
    r"^(encoder|decoder)\.embed_tokens\.weight$|^lm_head\.weight$"
    r"|^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$"
)


def read(config: Config) -> Seq2SeqSpec:
    """`model_type` t5 and mt5."""
    tied = config.flag("tie_word_embeddings")
    heads, width = config.integer("num_heads"), config.integer("d_ff")
    layers = config.layers("num_layers")
    deep = config.layers("num_decoder_layers") if config.has("num_decoder_layers") else layers
    hidden = config.integer("d_model")
    return Seq2SeqSpec(
        family="t5",
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        head_dim=config.integer("d_kv"),
        context_length=_LONGEST,
        source=SourceSpec(_LONGEST),
        encoder=StackSpec(layers, heads, heads, width),
        decoder=StackSpec(deep, heads, heads, width),
        norm="rms",
        norm_eps=config.number("layer_norm_epsilon"),
        activation=config.choice("feed_forward_proj", _FORMS),
        gated=config.values["feed_forward_proj"] != "relu",
        relative=_relative(config),
        output_scale=hidden**-0.5 if tied else None,
        tied_output=tied,
    )


def _relative(config: Config) -> tuple[int, int]:
    """Buckets and largest distance; refuses what leaves a distance without a bucket."""
    buckets = config.integer("relative_attention_num_buckets")
    distance = config.integer("relative_attention_max_distance")
    if buckets < 4 or buckets % 4 or distance <= buckets // 2:
        raise config.wrong(
            "relative_attention_num_buckets",
            buckets,
            f"a multiple of 4, less than twice 'relative_attention_max_distance' ({distance})",
        )
    return buckets, distance


def gather(spec: Seq2SeqSpec, weights: WeightMap) -> Seq2SeqWeights:
    """Layers are lists of sublayers: attention, in a decoder cross-attention, MLP."""
    hidden = spec.hidden_size

    def linear(name: str, rows: int, columns: int) -> Linear:
        return take_linear(weights, name, rows, columns, bias=False)

    def norm(name: str) -> Norm:
        return take_norm(weights, name, hidden)

    def layer(stack: StackSpec, base: str, *, crosses: bool) -> LayerWeights:
        def attention(place: int, kind: str) -> AttentionWeights:
            at = f"{base}.layer.{place}"
            take = partial(take_attention, spec, stack, linear, f"{at}.{kind}.")
            return take(("q", "k", "v", "o"), norm(f"{at}.layer_norm"))

        at = f"{base}.layer.{2 if crosses else 1}"
        dense, width = f"{at}.DenseReluDense", stack.mlp_width
        mlp = MlpWeights(
            gate=linear(f"{dense}.wi_0", width, hidden) if spec.gated else None,
            up=linear(f"{dense}.wi_1" if spec.gated else f"{dense}.wi", width, hidden),
            down=linear(f"{dense}.wo", hidden, width),
            norm=norm(f"{at}.layer_norm"),
        )
        cross = attention(1, "EncDecAttention") if crosses else None
        return LayerWeights(attention(0, "SelfAttention"), cross, mlp)

    def stack(kind: str, shape: StackSpec) -> StackWeights:
        bias = f"{kind}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        assert spec.relative is not None  # as read says  # noqa: S101
        buckets, distance = spec.relative
        table = weights.expect(bias, (buckets, shape.num_heads))
        return StackWeights(
            layers=tuple(
                layer(shape, f"{kind}.block.{index}", crosses=kind == "decoder")
                for index in range(shape.num_layers)
            ),
            embedding=weights.expect("shared.weight", (spec.vocab_size, hidden)),
            final_norm=norm(f"{kind}.final_layer_norm"),
            relative=RelativeBias(table, distance, kind == "encoder"),
        )

    return Seq2SeqWeights(
        stack("encoder", spec.encoder),
        stack("decoder", spec.decoder),
        take_head(spec, weights, "shared.weight", "lm_head.weight"),
    )


FAMILY = Seq2SeqFamily(read, gather, DEFAULTS, _UNUSED)
MT5 = Seq2SeqFamily(read, gather, MULTILINGUAL, _UNUSED)
