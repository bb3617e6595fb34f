"""Trained parts as files: safetensors with a card, made for one target, added when it is exported.

A matrix that was stored in int8 is two tensors, `NAME.codes` and `NAME.scale` (one float16 scale a
row and group of 32 columns); everything else is float32, a token map int32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft import strict_json
from quickdraft.errors import CheckpointError
from quickdraft.export.architectures.base import find_any, find_family
from quickdraft.export.architectures.decoder import DecoderSpec, DecoderWeights
from quickdraft.export.architectures.seq2seq import Seq2SeqFamily, Seq2SeqSpec, Seq2SeqWeights
from quickdraft.export.checkpoints.base import Checkpoint, WeightMap
from quickdraft.export.checkpoints.safetensors_file import read_metadata, read_safetensors
from quickdraft.export.emitters.base import Part
from quickdraft.export.quantize import GROUP, quantize
from quickdraft.export.weights import Blocked, Dense, Weight
from quickdraft.hashes import write_atomically
from quickdraft.types import ModelSpec

METADATA = "quickdraft"
VERSION = 1
_ZERO = 128


@dataclass(frozen=True)
class Target:
    """The model that a part is for. hidden_states: streams that parts want of it, to be added to
    by those that attach; by number of layers passed."""

    spec: DecoderSpec
    weights: DecoderWeights
    hidden_states: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Target:
        """The model of a checkpoint; its weights are loaded when they are used.

        Raises:
            CheckpointError, UnsupportedModel: it is damaged, or of a family we do not know.
        """
        family = find_family(checkpoint.config)
        spec = family.read(checkpoint.config)
        return cls(spec, family.collect(spec, checkpoint.weights))


@dataclass(frozen=True)
class TargetWithEncoder:
    """The encoder-decoder model that a part is for. facts: of its decoder, and its source."""

    spec: Seq2SeqSpec
    weights: Seq2SeqWeights
    facts: ModelSpec

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> TargetWithEncoder:
        """The model of a checkpoint; its weights are loaded when they are used.

        Raises:
            CheckpointError, UnsupportedModel: it is damaged, or of a family we do not know.
        """
        family = find_any(checkpoint.config)
        assert isinstance(family, Seq2SeqFamily)  # whoever calls this has looked  # noqa: S101
        spec = family.read(checkpoint.config)
        return cls(spec, family.collect(spec, checkpoint.weights), spec.model_spec())


@dataclass(frozen=True)
class Trained:
    """A trained part.

    kind: a name of registry.TRAINED. target: fingerprint of the checkpoint it was trained for (see
    manifest.SourceEntry). settings: what its kind needs to rebuild it. weights: by names that its
    kind gives them. card: data, recipe, seconds, acceptance, licence: for people.
    """

    kind: str
    target: str
    settings: Mapping[str, Any]
    weights: WeightMap
    card: Mapping[str, Any] = field(default_factory=dict)


Attach = Callable[[Trained, Target], Sequence[Part]]
"""What registry.TRAINED names: the graphs that a trained part adds to its target's bundle.

Raises:
    CheckpointError: its weights or settings do not fit the target.
"""


AttachWithEncoder = Callable[[Trained, TargetWithEncoder], Sequence[Part]]
"""The same, of registry.TRAINED_WITH_ENCODER."""


def read_trained(path: Path) -> Trained:
    """Read a trained part; values stay on disk until they are used.

    Raises:
        CheckpointError: it is damaged, or not a trained part.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; give a trained part (.safetensors)")
    text = read_metadata(path).get(METADATA)
    if text is None:
        raise CheckpointError(f"{path.name} holds no trained part of quickdraft")
    try:
        head = strict_json.loads(text.encode(), max_bytes=1 << 20, max_depth=16)
    except strict_json.JsonProblem as problem:
        raise CheckpointError(f"{path.name}: its description {problem}") from None
    fields = {"version", "kind", "target", "settings", "card"}
    if not isinstance(head, dict) or set(head) != fields:
        raise CheckpointError(f"{path.name}: its description must have {', '.join(sorted(fields))}")
    if head["version"] != VERSION:
        raise CheckpointError(
            f"{path.name} has version {head['version']!r} and this quickdraft reads {VERSION}; "
            "train it again, or upgrade quickdraft"
        )
    for name, kind in (("kind", str), ("target", str), ("settings", dict), ("card", dict)):
        if not isinstance(head[name], kind):
            raise CheckpointError(f"{path.name}: {name!r} of its description has a wrong type")
    weights = _join_blocks(path, read_safetensors(path, integers=True))
    return Trained(head["kind"], head["target"], head["settings"], WeightMap(weights), head["card"])


def check_target(trained: Trained, checkpoint: Checkpoint, where: str) -> None:
    """Refuse a part that was trained for another checkpoint; `where` names it in errors.

    Raises:
        CheckpointError: it was.
    """
    if trained.target != checkpoint.source.fingerprint:
        raise CheckpointError(
            f"{where} was trained for the checkpoint {trained.target[:12]}..., and this is "
            f"{checkpoint.source.fingerprint[:12]}... ({checkpoint.source.name}); train one for it"
        )


def write_trained(
    path: Path,
    *,
    kind: str,
    target: str,
    settings: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any]],
    card: Mapping[str, Any],
    int8: bool = True,
) -> None:
    """Write a trained part, all or nothing. int8: store matrices whose rows groups of 32 divide in
    blocks.

    Raises:
        CheckpointError: a tensor holds NaN or infinite values: training failed.
    """
    from safetensors.numpy import save

    stored: dict[str, NDArray[Any]] = {}
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{name!r} holds NaN or infinite values after training, so nothing was written to "
                f"{path}; train with a lower rate"
            )
        if values.dtype == np.int32:
            stored[name] = values
        elif int8 and values.ndim == 2 and values.shape[1] % GROUP == 0:
            blocks = quantize(np.asarray(values, np.float32), 8)
            stored[f"{name}.codes"] = blocks.codes
            stored[f"{name}.scale"] = blocks.scale.astype(np.float16)
        else:
            stored[name] = np.asarray(values, np.float32)
    head = {"version": VERSION, "kind": kind, "target": target, "settings": settings, "card": card}
    write_atomically(path, save(stored, {METADATA: json.dumps(head, allow_nan=False)}))


def _join_blocks(path: Path, tensors: Mapping[str, Weight]) -> dict[str, Weight]:
    joined: dict[str, Weight] = {}
    for name, weight in tensors.items():
        if name.endswith(".scale") and f"{name[:-6]}.codes" in tensors:
            continue
        if not name.endswith(".codes"):
            joined[name] = weight
            continue
        base, scale = name[:-6], tensors.get(f"{name[:-6]}.scale")
        groups = (*weight.shape[:1], weight.shape[-1] // GROUP)
        stored_as = (weight.stored_as, None if scale is None else scale.stored_as)
        fits = len(weight.shape) == 2 and scale is not None and scale.shape == groups
        if scale is None or not fits or stored_as not in (("U8", "F16"), ("U8", "F32")):
            raise CheckpointError(f"{path.name}: the blocks of {base!r} do not fit their scales")
        joined[base] = _blocked(base, weight, scale)
    return joined


def _blocked(name: str, codes: Weight, scale: Weight) -> Weight:
    def load() -> Dense | Blocked:
        values = codes.load()
        assert isinstance(values, Dense)  # tensors of a file are plain  # noqa: S101
        return Blocked(np.array(values.values), scale.dense(), None, 8, GROUP, _ZERO)

    return Weight(name, codes.shape, "Q8_0", load)
