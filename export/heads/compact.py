"""A small decoder of its own that drafts for one target.

After Zafrir et al., FastDraft (arXiv 2411.11055): the target's tokenizer, its kind of blocks, a
fraction of its width and depth; its logits are over the commonest tokens. Ours: it reads the
target's own embedding table, normed and projected to its width, which costs its file and the memory
of a device next to nothing; and it attends in a window, so that it works as well after a long
conversation as within the length it was trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

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
from quickdraft.export.heads.parts import EPS, token_ids
from quickdraft.export.ops import Ops, Rope
from quickdraft.export.trained import Target, Trained
from quickdraft.export.weights import Weight

V = TypeVar("V")

KIND = "compact"
ROPE_BASE = 10_000.0
_LINEARS = ("query", "key", "value", "output", "gate", "up", "down")
_NORMS = ("attention_norm", "mlp_norm")
_LIMITS: Mapping[str, tuple[int, int]] = {
    "layers": (1, 64),
    "width": (1, 1 << 16),
    "heads": (1, 1 << 10),
    "kv_heads": (1, 1 << 10),
    "head_dim": (2, 1 << 10),
    "mlp_width": (1, 1 << 18),
    "window": (1, 1 << 20),
    "vocab_size": (2, 1 << 24),
}


@dataclass(frozen=True)
class CompactSettings:
    """The shape of a compact draft, as its trained file says it.

    width: of the residual stream. head_dim: of each of `heads` queries and `kv_heads` keys.
    window: tokens that a layer sees. vocab_size: tokens it can draft. name: of the part.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    window: int
    vocab_size: int
    name: str = KIND

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> CompactSettings:
        """Check what a file says.

        Raises:
            CheckpointError: a setting is missing, unknown, or impossible.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if set(values) != set(names):
            raise CheckpointError(
                f"the settings of a compact draft are {', '.join(names)}; the file has "
                f"{', '.join(sorted(values))}"
            )
        for name, (low, high) in _LIMITS.items():
            if type(values[name]) is not int or not low <= values[name] <= high:
                raise CheckpointError(
                    f"{name} of a compact draft is {values[name]!r}; it must be a number between "
                    f"{low} and {high}"
                )
        if values["head_dim"] % 2 or values["heads"] % values["kv_heads"]:
            raise CheckpointError(
                "a compact draft has heads of an even width, and as many for every key and value"
            )
        if not isinstance(values["name"], str):
            raise CheckpointError(f"name of a compact draft is {values['name']!r}; it must be text")
        return cls(**values)


def attach_compact(trained: Trained, target: Target) -> Sequence[Part]:
    """The part of a trained compact draft; see export.trained.Attach.

    Raises:
        CheckpointError: its weights or settings do not fit the target.
    """
    return [compact_part(target, CompactSettings.of(trained.settings), trained.weights)]


def compact_part(target: Target, settings: CompactSettings, weights: WeightMap) -> Part:
    """The graph of a compact draft with these weights (names and shapes: `tensor_shapes`).

    Raises:
        CheckpointError: a weight is missing or has another shape.
    """
    own = {
        name: replace(weights.expect(name, shape), name=f"{settings.name}.{name}")
        for name, shape in tensor_shapes(target.spec, settings).items()
    }
    token_ids(weights, settings.vocab_size, target.spec.vocab_size)  # refuses what cannot be
    spec = decoder_spec(target.spec, settings)
    decoder = DecoderWeights(
        embedding=target.weights.embedding,
        layers=tuple(compact_layer(own, index) for index in range(settings.layers)),
        final_norm=Norm(own["final_norm"]),
        head=Linear(own["head"]),
    )
    return Part(
        role="drafter",
        name=settings.name,
        build=_builder(spec, decoder, own["embed"]),
        spec=spec.model_spec(),
        token_map=weights["tokens"],
        details={"kind": KIND},
    )


def tensor_shapes(target: DecoderSpec, settings: CompactSettings) -> dict[str, tuple[int, ...]]:
    """Its own float weights. Besides there is `tokens`, int32 [vocab_size], ascending: the target's
    token for each of its own. embed: from the target's embedding, normed."""
    width, head_dim = settings.width, settings.head_dim
    queries, keys = settings.heads * head_dim, settings.kv_heads * head_dim
    shapes: dict[str, tuple[int, ...]] = {"embed": (width, target.hidden_size)}
    for layer in range(settings.layers):
        of_layer = {
            "query": (queries, width),
            "key": (keys, width),
            "value": (keys, width),
            "output": (width, queries),
            "gate": (settings.mlp_width, width),
            "up": (settings.mlp_width, width),
            "down": (width, settings.mlp_width),
            **dict.fromkeys(_NORMS, (width,)),
        }
        shapes |= {f"{layer}.{name}": shape for name, shape in of_layer.items()}
    return shapes | {"final_norm": (width,), "head": (settings.vocab_size, width)}


def decoder_spec(target: DecoderSpec, settings: CompactSettings) -> DecoderSpec:
    """The facts of its decoder."""
    exponents = np.arange(0, settings.head_dim, 2, dtype=np.float32) / settings.head_dim
    frequencies = 1 / np.float32(ROPE_BASE) ** exponents
    layer = LayerSpec(
        settings.heads,
        settings.kv_heads,
        settings.mlp_width,
        Rope(tuple(frequencies.tolist())),
        settings.window,
    )
    return DecoderSpec(
        family=KIND,
        vocab_size=settings.vocab_size,
        hidden_size=settings.width,
        head_dim=settings.head_dim,
        context_length=target.context_length,
        layers=(layer,) * settings.layers,
        norm_eps=EPS,
    )


def compact_layer(own: Mapping[str, Weight], index: int) -> LayerWeights:
    """The weights of a layer, among all by name."""
    linears: dict[str, Any] = {name: Linear(own[f"{index}.{name}"]) for name in _LINEARS}
    norms: dict[str, Any] = {name: Norm(own[f"{index}.{name}"]) for name in _NORMS}
    return LayerWeights(**linears, **norms)


def _builder(
    spec: DecoderSpec, weights: DecoderWeights, embed: Weight
) -> Callable[[Ops[Any]], None]:
    def build(ops: Ops[V]) -> None:
        token = ops.rms_norm(ops.embed(ops.tokens(), weights.embedding), None, EPS)
        x, positions = ops.linear(token, embed), ops.positions()
        for index, layer in enumerate(weights.layers):
            x = decoder_layer(ops, spec, index, layer, x, positions)
        x = ops.take_rows(x, ops.output_rows())
        ops.logits(decoder_logits(ops, spec, weights, x))

    return build
