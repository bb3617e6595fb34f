"""Tiny random models of every family, as the exporter has them after reading the checkpoint."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny.families import Oracle, save_tiny
from tiny.folders import lasting_folder
from tiny.parts import target_request

from quickdraft.export.architectures.base import find_family
from quickdraft.export.architectures.decoder import DecoderSpec, DecoderWeights, build_decoder
from quickdraft.export.checkpoints.hf import read_huggingface
from quickdraft.export.emitters.numpy import emit_reference
from quickdraft.export.quantize import FORMATS
from quickdraft.runtime.backends.reference import ReferenceBackend


@dataclass(frozen=True)
class TinyDecoder:
    """A model, read; beside it the published implementation, with the same weights."""

    folder: Path
    spec: DecoderSpec
    weights: DecoderWeights
    oracle: Oracle

    def build(self, ops: Any) -> None:
        """Write the model against `ops`."""
        build_decoder(ops, self.spec, self.weights)

    def reference(self) -> ReferenceBackend:
        """The NumPy reference in float32, which offers every hidden state."""
        spec = self.spec.model_spec()
        layers = tuple(range(spec.num_layers + 1))
        request = target_request(self.build, spec, self.folder, FORMATS["fp32"], layers)
        return ReferenceBackend(self.folder, spec, emit_reference(request)[0])


@functools.cache
def tiny_decoder(name: str) -> TinyDecoder:
    """CONFIGS[name] of `tiny.family_configs`; read once."""
    folder = lasting_folder("tiny-")
    oracle = save_tiny(name, folder)
    checkpoint = read_huggingface(folder)
    family = find_family(checkpoint.config)
    spec = family.read(checkpoint.config)
    return TinyDecoder(folder, spec, family.collect(spec, checkpoint.weights), oracle)
