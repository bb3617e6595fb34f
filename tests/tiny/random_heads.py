"""Random heads of every kind that reads along, in bundles of a tiny model in every form."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny.checkpoint import tiny_checkpoint
from tiny.folders import lasting_folder

from quickdraft.export.emitters.base import Part
from quickdraft.export.heads import chimera, clover, compact, eagle, falcon, nested
from quickdraft.export.heads.layer import random_weights
from quickdraft.export.heads.parts import as_weights
from quickdraft.export.pipeline import export_checkpoint
from quickdraft.export.trained import Target, Trained, write_trained
from quickdraft.manifest import Manifest

VOCAB = 96
HIDDEN = 32
TOKENS = np.sort(np.random.default_rng(3).permutation(320)[:VOCAB]).astype(np.int32)
FORMATS = {"reference": "reference", "onnxruntime": "onnx", "hotpath": "hotpath"}

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Kind:
    """How heads of a kind are made. settings: of a trained file; made: their first weights;
    attach: to a target. limits: settings that a file may not say, and what the error names."""

    settings: Mapping[str, Any]
    made: Callable[[Target], Tensors]
    attach: Callable[[Trained, Target], Sequence[Part]]
    limits: Sequence[tuple[Mapping[str, Any], str]] = ()


_SIZES = {"mlp_width": 64, "vocab_size": VOCAB}
_TWO = eagle.EagleSettings((1, 2), **_SIZES, name="two", two_outputs=True)
_FALCON = falcon.FalconSettings((1, 2), **_SIZES, block=3)
_CHIMERA = chimera.ChimeraSettings(**_SIZES)
_CLOVER = clover.CloverSettings(**_SIZES)
_NESTED = nested.NestedSettings(
    (1, 3), compact.CompactSettings(3, 32, 2, 1, 16, 64, 16, VOCAB, name="nested")
)


def _nested(target: Target) -> Tensors:
    made = random_weights(compact.tensor_shapes(target.spec, _NESTED.shape), 5)
    return {**made, "tokens": TOKENS}


KINDS: dict[str, Kind] = {
    "chimera": Kind(
        vars(_CHIMERA),
        lambda target: chimera.initial_weights(target, _CHIMERA, TOKENS, seed=5),
        chimera.attach_chimera,
        [({"vocab_size": 1}, "vocab_size"), ({"mlp_width": 32}, "gate")],
    ),
    "clover": Kind(
        vars(_CLOVER),
        lambda target: clover.initial_weights(target, _CLOVER, TOKENS, seed=5),
        clover.attach_clover,
        [({"vocab_size": 95}, "tokens"), ({"mlp_width": 32}, "block_gate")],
    ),
    "eagle": Kind(
        vars(_TWO) | {"hidden_states": [1, 2]},
        lambda target: eagle.initial_weights(target, _TWO, TOKENS, seed=5),
        eagle.attach_eagle,
        [({"two_outputs": 1}, "two_outputs"), ({"mlp_width": 0}, "mlp_width")],
    ),
    "falcon": Kind(
        vars(_FALCON) | {"hidden_states": [1, 2]},
        lambda target: falcon.initial_weights(target, _FALCON, TOKENS, seed=5),
        falcon.attach_falcon,
        [({"block": 9}, "block"), ({"hidden_states": [2, 1]}, "hidden_states")],
    ),
    "nested": Kind(
        _NESTED.values(),
        _nested,
        nested.attach_nested,
        [({"exits": [1, 2]}, "exits"), ({"exits": [3, 1]}, "exits"), ({"width": 33}, "embed")],
    ),
}


def target_of(family: str) -> Target:
    return Target.of(tiny_checkpoint(family))


def tensors_of(kind: str, family: str) -> Tensors:
    """First weights and something random, so that nothing is left out by being 0."""
    made, rng = KINDS[kind].made(target_of(family)), np.random.default_rng(7)
    return {
        name: values
        if name == "tokens"
        else values + (0.2 * rng.standard_normal(values.shape)).astype(np.float32)
        for name, values in sorted(made.items())
    }


def write_head(file: Path, kind: str, family: str, **changes: Any) -> Path:
    write_trained(
        file,
        kind=kind,
        target=tiny_checkpoint(family).source.fingerprint,
        settings={**KINDS[kind].settings, **changes},
        tensors=tensors_of(kind, family),
        card={},
        int8=False,
    )
    return file


@functools.cache
def bundle(kind: str, family: str) -> tuple[Path, Manifest]:
    """A tiny model with a head, in every form."""
    folder = lasting_folder("along-")
    manifest = export_checkpoint(
        tiny_checkpoint(family),
        folder / "bundle",
        weights="fp32",
        formats=tuple(FORMATS.values()),
        trained=[write_head(folder / "head.safetensors", kind, family)],
    )
    return folder / "bundle", manifest


def parts_of(kind: str, family: str) -> Sequence[Part]:
    """The graphs of the head, over plain arrays."""
    settings = KINDS[kind].settings
    trained = Trained(kind, "t", settings, as_weights(tensors_of(kind, family)))
    return KINDS[kind].attach(trained, target_of(family))
