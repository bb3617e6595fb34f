"""What every emitter is given, and gives back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quickdraft.errors import BackendError, OptionError, UnsupportedModel
from quickdraft.export.checkpoints.base import TokenizerFiles
from quickdraft.export.quantize import WeightFormat
from quickdraft.export.weights import Dense, Weight
from quickdraft.manifest import CacheLayout, Role, Variant
from quickdraft.static_shapes import EMITTERS_OWN, StaticShapes
from quickdraft.types import ModelSpec


@dataclass(frozen=True)
class Part:
    """One graph of a bundle: the target, or one that works for it.

    role: its place in the manifest. name: of its files, and among the parts of its role. build:
    called with an Ops, describes one step. spec: its facts, those of its own cache among them.
    hidden_states: streams to offer, as in Ops.hidden_state. features: width of the vectors that
    come with its tokens, 0 for none. target: facts of the model into whose cache a predictor
    writes, None for other roles. fmt: the weight format, None for that of the request. top: how
    many of a row's largest logits the hotpath flavour puts out, 0 for a part without logits.
    token_map: int32 [vocabulary of this part] as a Weight of one axis, the target's token for each
    of its own; None where they are the same. memory: facts of the target whose memory a draft
    reads, None where it reads none, or is the target. details: for who opens it, plain JSON values.
    """

    role: Role
    name: str
    build: Callable[[Any], None]
    spec: ModelSpec
    hidden_states: tuple[int, ...] = ()
    features: int = 0
    target: ModelSpec | None = None
    fmt: WeightFormat | None = None
    top: int = 64
    token_map: Weight | None = None
    memory: ModelSpec | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EmitRequest:
    """What to write and where.

    folder: the bundle being written; an emitter makes one subfolder. parts: the target first. Parts
    of one emitter share a data file, so what several of them hold is stored once. tokenizer: for
    formats whose runtimes want to be told of it. shapes: for formats with fixed dimensions.

    An emitter is a function of a request that writes files and returns a manifest Variant for every
    part, in order.
    """

    folder: Path
    fmt: WeightFormat
    parts: tuple[Part, ...]
    tokenizer: TokenizerFiles | None = None
    shapes: StaticShapes = EMITTERS_OWN


SHARE_MEMORIES = ("hotpath", "reference")
"""Formats in which drafts can read the memory of their target."""

Emit = Callable[[EmitRequest], list[Variant]]


def entries(part: Part, folder: Path, target_cache: CacheLayout) -> dict[str, Any]:
    """The fields of Variant that a part other than the target has, its token map written."""
    if part.role == "target":
        return {}
    token_map = None
    if part.token_map is not None:
        token_map = f"{part.name}.tokens"
        loaded = part.token_map.load()
        assert isinstance(loaded, Dense)  # a token map is a plain array  # noqa: S101
        (folder / token_map).write_bytes(np.ascontiguousarray(loaded.values, "<i4").tobytes())
    return {
        "name": part.name,
        "spec": part.spec,
        "target_cache": target_cache if part.role == "predictor" else None,
        "features": part.features,
        "token_map": token_map,
        "details": dict(part.details),
    }


def check_staged(part: Part, staged: Collection[int]) -> None:
    """Every layer of the target must get its rows.

    Raises:
        BackendError: one does not (a fault of the builder of a predictor).
    """
    layers = range(part.target.num_layers if part.target is not None else 0)
    missing = [layer for layer in layers if layer not in staged]
    if missing:
        raise BackendError(f"{part.name} predicts nothing for layer {missing[0]}")


def refuse_readers(parts: Sequence[Part], formats: Sequence[str]) -> None:
    """Refuse a draft that reads the memory of its target where a format has no place for one.

    Raises:
        UnsupportedModel: there is one.
    """
    for part in parts:
        others = [form for form in formats if form not in SHARE_MEMORIES]
        if part.memory is not None and others:
            raise UnsupportedModel(
                f"the format {others[0]!r} cannot hold {part.name!r}, a draft that reads the "
                f"memory of its target; export it with --format {','.join(SHARE_MEMORIES)}"
            )


def refuse_groups(fmt: WeightFormat, form: str, held: Collection[int]) -> None:
    """For emitters that hold blocks of some lengths only: `held`; `form` is what they write.

    Raises:
        OptionError: the weight format has others.
    """
    if fmt.bits is not None and not set(fmt.groups) <= set(held):
        lengths = " or ".join(map(str, held))
        raise OptionError(
            f"{form} cannot hold {fmt.name} weights, as its groups have {lengths} values; "
            "export to openvino, openvino-static or coreml, or choose --weights int4"
        )


def refuse_sources(request: EmitRequest, form: str) -> None:
    """For emitters that cannot write encoder-decoder models; `form` is what they write.

    Raises:
        UnsupportedModel: the request holds one.
    """
    for part in request.parts:
        if part.spec.source is not None or part.role == "encoder":
            raise UnsupportedModel(
                f"the format {form!r} cannot hold {part.spec.family}, which is an encoder-decoder "
                "model; export it with --format hotpath, onnx, openvino or coreml"
            )
