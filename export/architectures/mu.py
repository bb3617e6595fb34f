"""Mu, the shape of "Return of the Encoder": rotary, two thirds of the layers in the encoder.

Elfeki et al. 2025, arXiv 2501.16273; config keys and names of tensors as in the published code. Its
encoder counts positions from the middle of the source; rotary attention sees differences of
positions only, so we count from the start. Queries and keys of cross-attention do not rotate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.export.architectures.config import Config
from quickdraft.export.architectures.decoder import Linear, Norm
from quickdraft.export.architectures.parts import rows, take_linear, take_norm
from quickdraft.export.architectures.rope import read_rope
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
from quickdraft.types import SourceSpec

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 32128,
    "n_embd": 1024,
    "qkv_embd": 384,
    "hidden_dim": 4096,
    "n_encoder_layer": 20,
    "n_decoder_layer": 10,
    "n_head": 6,
    "n_kv_head": 3,
    "is_interleaved": False,
    "block_size": 1024,
    "rope_theta": 10000,
    "rope_factor": 1.0,
}
_NORM_EPS = 1e-6
_EMBEDDING = "transformer.wte.weight"
_PROJECTIONS = ("q_linear", "k_linear", "v_linear", "out_linear")


def read(config: Config) -> Seq2SeqSpec:
    """`model_type` mu."""
    config.only("rope_factor", 1.0)  # others scale by the length that is reached
    config.only("tie_word_embeddings", True)
    config.only("is_interleaved", False)
    hidden, heads = config.integer("n_embd"), config.integer("n_head")
    inner = config.optional_integer("qkv_embd") or hidden
    if inner % heads:
        raise config.wrong("n_head", heads, f"a divisor of 'qkv_embd' {inner}")
    length, each = config.integer("block_size"), inner // heads
    width, kv_heads = config.integer("hidden_dim"), config.integer("n_kv_head")
    stacks = [
        StackSpec(config.layers(f"n_{kind}_layer"), heads, kv_heads, width)
        for kind in ("encoder", "decoder")
    ]
    return Seq2SeqSpec(
        family="mu",
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        head_dim=each,
        context_length=length,
        source=SourceSpec(length),
        encoder=stacks[0],
        decoder=stacks[1],
        norm_eps=_NORM_EPS,
        norm="rms",
        scale=each**-0.5,
        activation="gelu_tanh",
        rope=read_rope(config, each, config.number("rope_theta")),
    )


def gather(spec: Seq2SeqSpec, weights: WeightMap) -> Seq2SeqWeights:
    """Tensors of the published code; query heads in our order."""
    hidden = spec.hidden_size

    def linear(name: str, outputs: int, inputs: int) -> Linear:
        return take_linear(weights, name, outputs, inputs, bias=True)

    def norm(name: str) -> Norm:
        return take_norm(weights, name, hidden)

    def layer(stack: StackSpec, base: str, *, crosses: bool) -> LayerWeights:
        def attention(kind: str, norm_name: str) -> AttentionWeights:
            take = partial(take_attention, spec, stack, linear, f"{base}.{kind}.")
            taken = take(_PROJECTIONS, norm(f"{base}.{norm_name}"))
            return _ordered(taken, spec.head_dim, stack)

        mlp = MlpWeights(
            gate=None,
            up=linear(f"{base}.mlp.fc1", stack.mlp_width, hidden),
            down=linear(f"{base}.mlp.fc2", hidden, stack.mlp_width),
            norm=norm(f"{base}.ln3" if crosses else f"{base}.ln2"),
        )
        if not crosses:
            return LayerWeights(attention("attn", "ln1"), None, mlp)
        return LayerWeights(attention("causal_attn", "ln1"), attention("cross_attn", "ln2"), mlp)

    def stack(kind: str, shape: StackSpec, last: str) -> StackWeights:
        return StackWeights(
            layers=tuple(
                layer(shape, f"transformer.{kind}.{index}", crosses=kind == "h")
                for index in range(shape.num_layers)
            ),
            embedding=weights.expect(_EMBEDDING, (spec.vocab_size, hidden)),
            final_norm=norm(f"transformer.{last}"),
        )

    return Seq2SeqWeights(
        stack("e", spec.encoder, "ln_e"),
        stack("h", spec.decoder, "ln_f"),
        take_head(spec, weights, _EMBEDDING, "lm_head.weight"),
    )


def _ordered(weights: AttentionWeights, head_dim: int, stack: StackSpec) -> AttentionWeights:
    """There query head h reads KV head h % kv_heads, in our ops h // (heads // kv_heads)."""
    heads, kv_heads = stack.num_heads, stack.num_kv_heads
    if heads == kv_heads or heads % kv_heads:  # nothing to do, or refused by `read`'s caller
        return weights
    order = np.arange(heads).reshape(-1, kv_heads).T.reshape(-1)
    index = (order[:, None] * head_dim + np.arange(head_dim)).reshape(-1)
    query, output = weights.query, weights.output
    matrix = output.weight

    def columns(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.ascontiguousarray(values[:, index])

    name = f"{matrix.name}.ordered"
    return replace(
        weights,
        query=rows(query, index, query.weight.name.removesuffix(".weight") + ".ordered"),
        output=replace(output, weight=matrix.map(columns, matrix.shape, name)),
    )


FAMILY = Seq2SeqFamily(read, gather, DEFAULTS, r"^lm_head\.weight$")
