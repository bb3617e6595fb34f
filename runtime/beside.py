"""What runs beside a target, by the options it is opened with, and the memory that takes.

Parts share weights with their target: what is in a file that is mapped for it counts once.
OpenVINO packs weights anew in every graph, so there each part counts what it has of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from quickdraft.device_profiles.memory_plan import Footprint, kv_bytes_per_token, workspace_of
from quickdraft.errors import OptionError
from quickdraft.manifest import Manifest, Role, Variant
from quickdraft.runtime.backends.opening import parts
from quickdraft.runtime.drafting import DraftingSetup
from quickdraft.runtime.footprint import kv_type_of
from quickdraft.runtime.prediction import EXACT, Prefill

_ROLE_OF_DRAFTER: dict[str, Role] = {"auxiliary": "auxiliary"}


@dataclass(frozen=True)
class Beside:
    """What a model is opened with. drafting: None for no drafter that is a part of a bundle."""

    prefill: Prefill = EXACT
    drafting: DraftingSetup | None = None

    def parts(self, manifest: Manifest, backend: str) -> tuple[Variant, ...]:
        """The parts of the target's bundle that this opens, each once. What is missing is left
        out: opening it says so. A draft model with a bundle of its own is none of them."""
        found = [*self._predictors(manifest, backend), *self._drafts(manifest, backend)]
        return tuple({variant.model: variant for variant in found}.values())

    def _predictors(self, manifest: Manifest, backend: str) -> tuple[Variant, ...]:
        if not self.prefill.predicts:
            return ()
        wanted = self.prefill.predictor
        found = parts(manifest, backend, "predictor")
        return tuple(each for each in found if wanted in (None, each.name))[:1]

    def _drafts(self, manifest: Manifest, backend: str) -> Iterator[Variant]:
        setup = self.drafting
        if setup is None:
            return
        try:
            names = setup.names_in(manifest, backend, parts_open=True)
        except OptionError:  # said again, and to somebody who reads it, on opening
            names = setup.names
        for name in names:
            part = setup.options.get(name, {}).get("part", "")
            found = parts(manifest, backend, _ROLE_OF_DRAFTER.get(name, "drafter"))
            if name in _ROLE_OF_DRAFTER and not part:
                yield from found[:1]
            else:
                yield from (each for each in found if _is_of(each.name, part or name))


NOTHING = Beside()


def _is_of(name: str, part: str) -> bool:
    """Whether a variant is the part of that name, or one of its several: `hydra-1`, `hydra-2`."""
    stem, _, number = name.rpartition("-")
    return name == part or (stem == part and number.isdigit())


def with_parts(
    found: Footprint,
    manifest: Manifest,
    target: Variant,
    beside: Beside,
    backend: str,
) -> Footprint:
    """The footprint of a target with that of what runs beside it: weights that are in no file of
    its own, the caches, and what their sessions compute in. A refresh is a second cache and a
    second session of the target."""
    weights = caches = working = 0
    mapped = set(target.files)
    for part in beside.parts(manifest, backend):
        spec = part.spec or manifest.model
        weights += _weights(manifest, target, part, mapped)
        caches += kv_bytes_per_token(spec, _kv_type(found, part))
        working += workspace_of(spec)
        mapped.update(part.files)
    if beside.prefill.refresh:
        caches += kv_bytes_per_token(manifest.model, found.kv_type)
        working += workspace_of(manifest.model)
    return replace(found, parts=weights, kv_parts=caches, working=working)


def _weights(manifest: Manifest, target: Variant, part: Variant, mapped: set[str]) -> int:
    """Bytes of weights that a part brings. Of a file that it shares with its target it packs, with
    OpenVINO, as large a share as it has layers."""
    sizes = {name: manifest.files[name].size for name in part.files}
    new = sum(size for name, size in sizes.items() if name not in mapped)
    if part.target_format != "openvino":
        return new
    layers = 1.0 if part.spec is None else part.spec.num_layers / manifest.model.num_layers
    again = sum(size for name, size in sizes.items() if name in target.files)
    return new + int(min(layers, 1.0) * again)


def _kv_type(found: Footprint, part: Variant) -> str:
    """A predictor fills caches of the target's kind, and has one of that kind itself."""
    return found.kv_type if part.target_cache is not None else kv_type_of(part, None)
