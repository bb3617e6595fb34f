"""Choose and construct the backend of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from quickdraft.errors import BundleError
from quickdraft.manifest import Flavour, Manifest, TargetFormat, Variant
from quickdraft.registry import BACKENDS, lookup
from quickdraft.runtime.backends.base import Backend

OPENS: dict[str, tuple[TargetFormat, Flavour | None]] = {
    "onnxruntime": ("onnx", "portable"),
    "reference": ("reference", None),
}
"""What each backend of this package opens (None: any flavour); best backend first. A backend from
elsewhere is given the first variant, and refuses what it cannot open."""


def open_backend(folder: Path, manifest: Manifest, name: str, threads: int | None) -> Backend:
    """Load the target model of a bundle.

    name: of the registry, or "auto": the first backend that has a variant it can open. A backend
    class is constructed as `Class(folder, model_spec, variant, threads=None)`.

    Raises:
        OptionError: no such backend. BundleError: the bundle has no variant for it.
    """
    if name != "auto":
        backend_class = lookup("backend", BACKENDS, name)
        variant = variant_for(manifest, name)
    else:
        name, variant = _choose(manifest)
        backend_class = lookup("backend", BACKENDS, name)
    return cast(Backend, backend_class(folder, manifest.model, variant, threads=threads))


def _choose(manifest: Manifest) -> tuple[str, Variant]:
    for name in OPENS:
        found = _find(manifest, name)
        if name in BACKENDS and found is not None:
            return name, found
    raise BundleError(f"no backend opens this bundle ({_content(manifest)}); export it again")


def variant_for(manifest: Manifest, name: str) -> Variant:
    """The variant of the target model that a backend opens.

    Raises:
        BundleError: there is none.
    """
    found = _find(manifest, name)
    if found is None:
        raise BundleError(
            f"the bundle has no variant for the backend {name!r} ({_content(manifest)}); "
            "use another backend, or export it again"
        )
    return found


def _find(manifest: Manifest, name: str) -> Variant | None:
    wanted, flavour = OPENS.get(name, (None, None))
    for variant in manifest.roles.get("target", ()):
        if wanted in (None, variant.target_format) and flavour in (None, variant.flavour):
            return variant
    return None


def _content(manifest: Manifest) -> str:
    found = [f"{v.target_format} {v.flavour}" for v in manifest.roles.get("target", ())]
    return f"it has: {', '.join(found)}" if found else "it has no target model"
