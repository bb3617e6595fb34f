"""Tiny models of the hotpath flavour, exported and opened once per process."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tiny.blocked_weights import BlockedWeights
from tiny.family_configs import CONFIGS
from tiny.parts import target_request
from tiny.random_weights import RandomWeights

from quickdraft.drafters.tree import Tree
from quickdraft.export.architectures.base import find_family
from quickdraft.export.emitters.base import EmitRequest
from quickdraft.export.emitters.hotpath import emit_hotpath
from quickdraft.export.emitters.numpy import emit_reference
from quickdraft.export.quantize import FORMATS
from quickdraft.kvcache.blocked import BlockedCache
from quickdraft.manifest import Variant
from quickdraft.runtime.backends.base import StepOutput
from quickdraft.runtime.backends.hotpath import HotpathBackend
from quickdraft.runtime.backends.reference import ReferenceBackend
from quickdraft.weight_layout import LAYOUTS

_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []
"""Removed when Python ends."""

_WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}


def _request(name: str, form: str, folder: Path) -> EmitRequest:
    model_type, config = CONFIGS[name]
    blocks = form in LAYOUTS
    changed = {**config, "model_type": model_type, **(_WIDE if blocks else {})}
    family = find_family({"model_type": model_type})
    description = family.read(changed)
    weights = BlockedWeights(form) if blocks else RandomWeights()
    return target_request(
        lambda ops: family.build(ops, description, weights),
        description.model_spec(),
        folder,
        FORMATS["gguf" if blocks else form],
        hidden_states=(1,),
    )


@functools.cache
def exported(name: str, form: str) -> tuple[EmitRequest, Variant]:
    """The hotpath variant of CONFIGS[name]. form: a name of FORMATS, or of a kernel format whose
    blocks all matrices have."""
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # Windows keeps what is mapped
    _FOLDERS.append(folder)
    request = _request(name, form, Path(folder.name))
    return request, emit_hotpath(request)[0]


@functools.cache
def backend(
    name: str = "llama", form: str = "int8", kv_cache: str = "f16", threads: int = 2
) -> HotpathBackend:
    """A model of `exported`."""
    request, variant = exported(name, form)
    return HotpathBackend(request.folder, request.parts[0].spec, variant, threads, kv_cache)


@functools.cache
def reference(name: str, form: str) -> ReferenceBackend:
    """The same model, interpreted with NumPy."""
    request, _ = exported(name, form)
    return ReferenceBackend(request.folder, request.parts[0].spec, emit_reference(request)[0])


def bits(output: StepOutput) -> list[bytes]:
    """All that a step says, row by row."""
    top = output.top
    assert top is not None
    parts = (output.logits, top.values, top.ids, top.log_sum)
    return [b"".join(part[row].tobytes() for part in parts) for row in range(len(top.log_sum))]


def plain(
    model: HotpathBackend,
    tokens: list[int],
    new_cache: Callable[[], BlockedCache] | None = None,
) -> tuple[list[bytes], BlockedCache]:
    """What each token decoded alone says, and the cache."""
    cache = (new_cache or model.new_cache)()
    rows = []
    for token in tokens:
        rows += bits(model.step(Tree.chain([token]), cache))
        cache.commit([0])
    return rows, cache


def same_rows(a: BlockedCache, b: BlockedCache) -> bool:
    """Whether two caches hold the same committed rows, to the last bit."""
    pairs = zip(a.rows(), b.rows(), strict=True)
    return all(x.tobytes() == y.tobytes() for x, y in pairs)


def random_tokens(count: int, seed: int) -> list[int]:
    """Token ids of the tiny vocabulary."""
    return np.random.default_rng(seed).integers(0, 320, count).tolist()
