"""Tiny encoder-decoder models with random weights: what the families are made of, not families.

`emitted` writes one of SPECS, both its parts, with an emitter, once per process.
"""

from __future__ import annotations

import functools
import tempfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from quickdraft.export.architectures.decoder import Linear, Norm
from quickdraft.export.architectures.seq2seq import (
    AttentionWeights,
    Convolution,
    LayerWeights,
    MlpWeights,
    Seq2SeqSpec,
    Seq2SeqWeights,
    StackSpec,
    StackWeights,
    build_encoder,
    build_target,
)
from quickdraft.export.emitters.base import EmitRequest, Part
from quickdraft.export.ops import RelativeBias
from quickdraft.export.quantize import FORMATS
from quickdraft.export.weights import Weight, dense_weight
from quickdraft.kvcache.memory import Source
from quickdraft.manifest import Variant
from quickdraft.types import SourceSpec

_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []
"""Removed when Python ends."""
VOCABULARY, WIDTH = 96, 64

SPECS = {
    # As T5: relative positions, norms before, a gate.
    "tokens": Seq2SeqSpec(
        family="tokens",
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        head_dim=16,
        context_length=64,
        source=SourceSpec(300),
        encoder=StackSpec(2, 4, 4, 96),
        decoder=StackSpec(2, 4, 4, 96),
        norm_eps=1e-6,
        norm="rms",
        activation="gelu_tanh",
        gated=True,
        relative=(8, 20),
        output_scale=0.125,
    ),
    # As BART and Marian: tables of positions, norms after, biases everywhere.
    "after": Seq2SeqSpec(
        family="after",
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        head_dim=16,
        context_length=64,
        source=SourceSpec(40),
        encoder=StackSpec(1, 4, 4, 128),
        decoder=StackSpec(2, 4, 4, 128),
        norm_eps=1e-5,
        norm_after=True,
        scale=0.25,
        embedding_scale=8.0,
    ),
    # As Whisper: two convolutions over frames; grouped heads are our own idea.
    "frames": Seq2SeqSpec(
        family="frames",
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        head_dim=16,
        context_length=64,
        source=SourceSpec(81, width=20, stride=2),
        encoder=StackSpec(1, 4, 2, 128),
        decoder=StackSpec(2, 4, 2, 128),
        norm_eps=1e-5,
        scale=0.25,
    ),
}


def random_weight(name: str, *shape: int, mean: float = 0.0, scale: float | None = None) -> Weight:
    """The same values for the same name."""
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    factor = 1.2 / float(np.prod(shape[1:])) ** 0.5 if scale is None else scale
    return dense_weight(name, (values * factor + mean).astype(np.float32))


def weights(spec: Seq2SeqSpec) -> Seq2SeqWeights:
    """Random weights of a model."""
    embedding = random_weight("embedding", spec.vocab_size, spec.hidden_size, scale=0.4)
    encoder = _stack(spec, spec.encoder, "encoder", embedding, spec.source.rows(spec.source.length))
    decoder = _stack(spec, spec.decoder, "decoder", embedding, spec.context_length)
    return Seq2SeqWeights(encoder, decoder, Linear(embedding))


def _stack(
    spec: Seq2SeqSpec, shape: StackSpec, kind: str, embedding: Weight, length: int
) -> StackWeights:
    frames = spec.source.width if kind == "encoder" else 0
    hidden, relative, positions = spec.hidden_size, None, None
    if spec.relative is None:
        positions = random_weight(f"{kind}.positions", length, hidden, scale=0.4)
    else:
        buckets, distance = spec.relative
        table = random_weight(f"{kind}.relative", buckets, shape.num_heads, scale=1.0)
        relative = RelativeBias(table, distance, kind == "encoder")
    convolutions = (
        (_convolution("one", hidden, frames, 1), _convolution("two", hidden, hidden, 2))
        if frames
        else ()
    )
    return StackWeights(
        layers=tuple(
            _layer(spec, shape, f"{kind}.{index}", crosses=kind == "decoder")
            for index in range(shape.num_layers)
        ),
        embedding=None if frames else embedding,
        convolutions=convolutions,
        positions=positions,
        embedding_norm=_norm(spec, f"{kind}.first") if spec.norm_after else None,
        final_norm=None if spec.norm_after else _norm(spec, f"{kind}.last"),
        relative=relative,
    )


def _convolution(name: str, outputs: int, inputs: int, stride: int) -> Convolution:
    weight = random_weight(f"convolution.{name}", outputs, inputs, 3)
    return Convolution(
        weight, random_weight(f"convolution.{name}.bias", outputs, scale=0.1), stride
    )


def _norm(spec: Seq2SeqSpec, name: str) -> Norm:
    weight = random_weight(f"{name}.norm", spec.hidden_size, mean=1.0, scale=0.1)
    if spec.norm == "rms":
        return Norm(weight)
    return Norm(weight, random_weight(f"{name}.norm.bias", spec.hidden_size, scale=0.1))


def _linear(spec: Seq2SeqSpec, name: str, rows: int, columns: int) -> Linear:
    weight = random_weight(name, rows, columns)
    if spec.norm == "rms":
        return Linear(weight)
    return Linear(weight, random_weight(f"{name}.bias", rows, scale=0.1))


def _layer(spec: Seq2SeqSpec, shape: StackSpec, name: str, *, crosses: bool) -> LayerWeights:
    linear, hidden = partial(_linear, spec), spec.hidden_size
    wide, narrow = (heads * spec.head_dim for heads in (shape.num_heads, shape.num_kv_heads))

    def attention(kind: str) -> AttentionWeights:
        at = f"{name}.{kind}"
        return AttentionWeights(
            linear(f"{at}.query", wide, hidden),
            linear(f"{at}.key", narrow, hidden),
            linear(f"{at}.value", narrow, hidden),
            linear(f"{at}.output", hidden, wide),
            _norm(spec, at),
        )

    mlp = MlpWeights(
        gate=linear(f"{name}.gate", shape.mlp_width, hidden) if spec.gated else None,
        up=linear(f"{name}.up", shape.mlp_width, hidden),
        down=linear(f"{name}.down", hidden, shape.mlp_width),
        norm=_norm(spec, f"{name}.mlp"),
    )
    return LayerWeights(attention("self"), attention("cross") if crosses else None, mlp)


def request(name: str, form: str, folder: Path) -> EmitRequest:
    """Both parts of a model of SPECS, in a format of FORMATS."""
    spec = SPECS[name]
    held, facts = weights(spec), spec.model_spec()
    target = Part("target", "model", partial(build_target, spec=spec, weights=held), facts)
    encoder = Part(
        "encoder",
        "encoder",
        partial(build_encoder, spec=spec, weights=held),
        spec.encoder_spec(),
        features=spec.source.width,
        target=facts,
    )
    return EmitRequest(folder, FORMATS[form], (target, encoder))


@functools.cache
def emitted(
    emit: Callable[[EmitRequest], list[Variant]], name: str, form: str
) -> tuple[EmitRequest, Variant, Variant]:
    """A model on disk: how it was asked for, the variants of target and encoder."""
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # Windows keeps what is mapped
    _FOLDERS.append(folder)
    asked = request(name, form, Path(folder.name))
    target, encoder = emit(asked)
    return asked, target, encoder


def source(name: str, length: int, seed: int = 0) -> Source:
    """A random source for a model of SPECS."""
    random, width = np.random.default_rng(seed), SPECS[name].source.width
    if width:
        return Source(features=random.standard_normal((length, width)).astype(np.float32))
    return Source(tokens=random.integers(0, VOCABULARY, length))
