"""Tiny models as Core ML packages, opened with the evaluator, beside the NumPy reference."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tiny.blocked_weights import BlockedWeights
from tiny.family_configs import CONFIGS
from tiny.parts import target_request
from tiny.random_weights import RandomWeights

from quickdraft.export.architectures.base import find_family
from quickdraft.export.emitters.base import EmitRequest
from quickdraft.export.emitters.coreml import emit_coreml
from quickdraft.export.emitters.numpy import emit_reference
from quickdraft.export.quantize import FORMATS
from quickdraft.manifest import Variant
from quickdraft.runtime.backends.coreml import CoreMlBackend
from quickdraft.runtime.backends.reference import ReferenceBackend
from quickdraft.weight_layout import LAYOUTS

_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []
"""Removed when Python ends."""
_WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}


def request(name: str, form: str, hidden_states: Sequence[int] = ()) -> EmitRequest:
    """CONFIGS[name] with random weights. form: a name of FORMATS, or of blocks of GGUF."""
    folder = tempfile.TemporaryDirectory()
    _FOLDERS.append(folder)
    model_type, config = CONFIGS[name]
    blocks = form in LAYOUTS
    wide = blocks or form in ("int4-g128", "int4-channel")
    family = find_family({"model_type": model_type})
    spec = family.read({**config, "model_type": model_type, **(_WIDE if wide else {})})
    weights = BlockedWeights(form) if blocks else RandomWeights()
    return target_request(
        lambda ops: family.build(ops, spec, weights),
        spec.model_spec(),
        Path(folder.name),
        FORMATS["gguf" if blocks else form],
        tuple(hidden_states),
    )


@functools.cache
def exported(name: str, form: str) -> tuple[EmitRequest, Variant]:
    """The Core ML variant of a model."""
    made = request(name, form, (1,))
    return made, emit_coreml(made)[0]


@functools.cache
def backend(name: str, form: str) -> CoreMlBackend:
    """The model, walked by the evaluator."""
    made, variant = exported(name, form)
    return CoreMlBackend(made.folder, made.parts[0].spec, variant, device="evaluator")


@functools.cache
def reference(name: str, form: str) -> ReferenceBackend:
    """The same model and weights, interpreted with NumPy in float32."""
    made, _ = exported(name, form)
    return ReferenceBackend(made.folder, made.parts[0].spec, emit_reference(made)[0])
