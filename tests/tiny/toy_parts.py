"""A trained file that adds one part of every kind to a tiny model, and nothing that was trained."""

from __future__ import annotations

import functools
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from tiny.checkpoint import tiny_checkpoint
from tiny.hotpath_parts import Echo

from quickdraft import registry
from quickdraft.bundle import Bundle, open_bundle
from quickdraft.export.architectures.decoder import (
    build_decoder,
    decoder_embedding,
    decoder_keys,
    decoder_layer,
    decoder_norm,
    layer_attention,
)
from quickdraft.export.checkpoints.base import Checkpoint
from quickdraft.export.emitters.base import Part
from quickdraft.export.pipeline import export_checkpoint
from quickdraft.export.trained import Target, Trained, write_trained
from quickdraft.types import ModelSpec

KIND = "toys"
FORMATS = ("hotpath", "onnx", "reference")
_FOLDERS: list[Any] = []
TOKENS = np.arange(3, 320, 5, dtype=np.int32)
"""What the heads can draft."""
EPS = 1e-5
AHEAD = 3


def _random(name: str, *shape: int) -> NDArray[np.float32]:
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    return (values * 1.3 / shape[-1] ** 0.5).astype(np.float32)


def toy_tensors(target: Target) -> dict[str, NDArray[Any]]:
    """Random weights of all parts, by name."""
    width, layer = target.spec.hidden_size, target.spec.layers[0]
    heads, kv = (n * target.spec.head_dim for n in (layer.num_heads, layer.num_kv_heads))
    shapes: dict[str, tuple[int, ...]] = {
        "join": (width, 3 * width),
        "query": (heads, width),
        "key": (kv, width),
        "value": (kv, width),
        "output": (width, heads),
        "map.key": (kv, width),
        "map.value": (kv, width),
        **{f"ahead.{index}": (width, width) for index in range(AHEAD)},
    }
    tensors: dict[str, NDArray[Any]] = {
        name: _random(name, *shape) for name, shape in shapes.items()
    }
    return {**tensors, "tokens": TOKENS}


def write_toys(path: Path, checkpoint: Checkpoint, *, int8: bool = False) -> Path:
    """The file, for a checkpoint of two layers."""
    write_trained(
        path,
        kind=KIND,
        target=checkpoint.source.fingerprint,
        settings={"made": "up"},
        tensors=toy_tensors(Target.of(checkpoint)),
        card={"data": "none", "seconds": 0.5},
        int8=int8,
    )
    return path


def write_bundle(
    folder: Path, formats: Sequence[str] = FORMATS, toys: bool = True, **options: Any
) -> None:
    """A tiny model, with its parts. int8: how their file stores matrices."""
    checkpoint = tiny_checkpoint(options.pop("family", "llama"))
    file, int8 = folder.parent / "toys.safetensors", options.pop("int8", False)
    trained = [write_toys(file, checkpoint, int8=int8)] if toys else []
    options = {"weights": "fp32", "formats": formats, **options}
    with mock.patch.object(registry, "TRAINED", {KIND: f"{__name__}:attach"}):
        export_checkpoint(checkpoint, folder, trained=trained, **options)


@functools.cache
def bundle(family: str = "llama", formats: Sequence[str] = FORMATS) -> Bundle:
    """Written once, and opened as any other: hashes, names and all."""
    _FOLDERS.append(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
    folder = Path(_FOLDERS[-1].name) / "bundle"
    write_bundle(folder, formats, family=family)
    return open_bundle(folder)


def attach(trained: Trained, target: Target) -> Sequence[Part]:
    """A head that attends, one that does not, two predictors and an auxiliary."""
    spec = target.spec.model_spec()
    streams = (0, 1, 2)
    target.hidden_states.update(streams)
    toys = _Toys(trained, target)
    facts: Mapping[str, Any] = {
        "features": len(streams) * spec.hidden_size,
        "hidden_states": (1,),
        "top": 8,
        "token_map": trained.weights["tokens"],
        "details": {"hidden_states": list(streams), "state": 1, "kind": KIND},
    }
    one = _cut(spec, 1)
    trimmed = {"vocab_size": len(TOKENS)}
    dummy = {"num_heads": (1,), "num_kv_heads": (1,), "head_dim": 1}
    predictor: Mapping[str, Any] = {"role": "predictor", "target": spec}
    return (
        Part("drafter", "attends", toys.attends, replace(one, **trimmed), **facts),
        Part(
            "drafter", "ahead", toys.ahead, replace(one, **trimmed, **dummy, windows=(None,)),
            **{**facts, "hidden_states": ()},
        ),
        Part("auxiliary", "small", toys.auxiliary, one, details={"keep": 0.5}),
        Part(name="echo", build=toys.echo, spec=spec, **predictor),
        Part(name="half", build=toys.half, spec=one, details={"auxiliary": "small"}, **predictor),
    )  # fmt: skip


def _cut(spec: ModelSpec, layers: int) -> ModelSpec:
    return replace(
        spec,
        num_layers=layers,
        num_heads=spec.num_heads[:layers],
        num_kv_heads=spec.num_kv_heads[:layers],
        windows=spec.windows[:layers],
    )


class _Toys:
    """The graphs."""

    def __init__(self, trained: Trained, target: Target) -> None:
        self._of = trained.weights
        self._spec, self._weights = target.spec, target.weights
        self._pruned = replace(target.spec, layers=target.spec.layers[:1])
        self._kept = replace(target.weights, layers=target.weights.layers[:1])
        self._head = target.weights.head.weight.take_rows(TOKENS.astype(np.int64), "toys.head")

    def _logits(self, ops: Any, x: Any) -> None:
        rows = ops.take_rows(x, ops.output_rows())
        ops.logits(ops.linear(ops.rms_norm(rows, None, EPS), self._head))

    def attends(self, ops: Any) -> None:
        """Streams and token into one layer of attention of its own."""
        states = ops.linear(ops.rms_norm(ops.features(), None, EPS, heads=3), self._of["join"])
        x = ops.add(states, ops.embed(ops.tokens(), self._weights.embedding))
        names = ("query", "key", "value")
        pairs = [(self._of[name], None) for name in names]
        q, k, v = ops.linears(ops.rms_norm(x, None, EPS), pairs)
        shape, positions = self._spec.layers[0], ops.positions()
        q = ops.rope(q, positions, shape.rope, shape.num_heads)
        k = ops.rope(k, positions, shape.rope, shape.num_kv_heads)
        mixed = ops.attend(q, k, v, layer_attention(self._spec, 0))
        x = ops.add(x, ops.linear(mixed, self._of["output"]))
        ops.hidden_state(x, 1)
        self._logits(ops, x)

    def ahead(self, ops: Any) -> None:
        """Several heads of each row, one after another."""
        x = ops.linear(ops.features(), self._of["join"])
        heads = [
            ops.add(x, ops.activate(ops.linear(x, self._of[f"ahead.{index}"]), "silu"))
            for index in range(AHEAD)
        ]
        self._logits(ops, ops.stack(heads))

    def auxiliary(self, ops: Any) -> None:
        """The target's first layer, its norm and head."""
        build_decoder(ops, self._pruned, self._kept)

    def echo(self, ops: Any) -> None:
        """The target, telling its own cache."""
        build_decoder(Echo(ops), self._spec, self._weights)

    def half(self, ops: Any) -> None:
        """The first layer tells its own keys and values, and maps what follows to the second's."""
        spec, layers, positions = self._spec, self._weights.layers, ops.positions()
        x = decoder_embedding(ops, spec, self._weights, positions)
        x = decoder_layer(Echo(ops), spec, 0, layers[0], x, positions)
        normed = decoder_norm(ops, spec, x, layers[1].attention_norm)
        k, v = ops.linears(normed, [(self._of[f"map.{n}"], None) for n in ("key", "value")])
        ops.stage(decoder_keys(ops, spec, 1, layers[1], k, positions), v, layer_attention(spec, 1))
