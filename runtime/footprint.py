"""What a variant of a bundle keeps in memory once it runs.

Weights of ONNX graphs and of our own kernels are read where the file is mapped, once for all
widths. OpenVINO packs them anew in every graph it compiles, whatever its properties
(docs/decisions/022-what-openvino-graphs-keep.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from quickdraft.device_profiles.memory_plan import CHUNK, Footprint
from quickdraft.device_profiles.profile import Profile
from quickdraft.device_profiles.simulation import bytes_of_weights
from quickdraft.manifest import FixedStateLayout, Manifest, Variant
from quickdraft.runtime.backends.opening import find_encoder
from quickdraft.types import ModelSpec

OPENVINO_GRAPH = 16
"""Bytes of a compiled graph for each byte of the file that describes it, beside its weights."""
OPENVINO_LAYER = 1 << 20
"""The same for each layer, where there is no such file yet."""
OPENVINO_HEAD = 2
"""Bytes of each value of the head, which is packed once more for steps of several rows."""
OPENVINO_SCORES = 8
"""Arrays as large as the scores of a layer that a graph of any number of rows works in."""
OPENVINO_STATIC_SCORES = 3
"""The same of each graph of fixed dimensions."""
OPENVINO_WAITING = 2
"""Graphs that may have been compiled and not have run yet: each then holds a whole cache."""


def footprint(manifest: Manifest, variant: Variant, kv_cache: str | None = None) -> Footprint:
    """Of the target in a variant, and of the encoder that belongs to it. kv_cache: the type of keys
    and values, None where the backend chooses.

    Raises:
        BundleError: an encoder is missing.
    """
    spec = manifest.model
    weights, graphs, more = _graphs(manifest, variant)
    found = Footprint(weights, kv_type_of(variant, kv_cache), graphs, more)
    if variant.target_format == "openvino":
        found = _beside_graphs(found, spec, tuple(variant.widths), variant.capacity)
    if spec.source is None:
        return found
    weights, graphs, more = _graphs(manifest, find_encoder(manifest, variant))
    return replace(found, once=found.once + graphs * (weights + more))


def _beside_graphs(
    found: Footprint, spec: ModelSpec, rows: Sequence[int], capacity: int
) -> Footprint:
    """With what OpenVINO holds beside weights. rows, capacity: of graphs of fixed dimensions."""
    heads, head = max(spec.num_heads), OPENVINO_HEAD * spec.vocab_size * spec.hidden_size
    if not rows:
        return replace(found, once=head, scores=OPENVINO_SCORES * CHUNK * heads * 4)
    scores = OPENVINO_STATIC_SCORES * sum(rows) * capacity * heads * 4
    waiting = min(OPENVINO_WAITING, len(rows))
    return replace(found, slots=waiting * capacity, once=scores)


def _graphs(manifest: Manifest, variant: Variant) -> tuple[int, int, int]:
    """Bytes of the weights, how many graphs hold a copy, and bytes of each graph besides."""
    files = {name: manifest.files[name].size for name in variant.files}
    if variant.target_format != "openvino":
        return sum(files.values()), 1, 0
    graphs = len(variant.widths) or 1
    described = sum(size for name, size in files.items() if name.endswith(".xml")) // graphs
    weights = sum(size for name, size in files.items() if name.endswith(".bin"))
    return weights, graphs, OPENVINO_GRAPH * described


def footprint_by_profile(profile: Profile, manifest: Manifest, files: int) -> Footprint:
    """Of a model in the form of a profile. files: bytes of the weights that are at hand, which
    count where the profile leaves them as they are."""
    weights = bytes_of_weights(profile, manifest.model, files)
    found = Footprint(weights, profile.run.kv_cache)
    if profile.static is None or not profile.run.backends[0].startswith("openvino"):
        return found
    rows = (*profile.static.widths, profile.static.prefill_chunk)
    more = OPENVINO_LAYER * manifest.model.num_layers
    slots = min(profile.static.cache_length, manifest.model.context_length)
    found = replace(found, graphs=len(rows), graph=more)
    return _beside_graphs(found, manifest.model, rows, slots)


def kv_type_of(variant: Variant, kv_cache: str | None) -> str:
    """How a variant holds keys and values. kv_cache: what was asked for, None if nothing."""
    if isinstance(variant.cache, FixedStateLayout):
        return "f32" if len(variant.cache.keys) > 1 else "f16"
    if variant.flavour == "hotpath":
        return kv_cache or "f16"
    if (variant.target_format, variant.flavour) == ("openvino", "adapted"):
        return kv_cache or "f32"
    return "f32"
