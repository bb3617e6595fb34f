"""Choose and construct the backend of a bundle."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quickdraft.errors import BackendError, BundleError
from quickdraft.manifest import Flavour, Manifest, TargetFormat, Variant
from quickdraft.registry import BACKENDS, lookup
from quickdraft.runtime.backends.base import Backend

OPENS: dict[str, tuple[TargetFormat, Flavour | None]] = {
    "hotpath": ("onnx", "hotpath"),
    "onnxruntime": ("onnx", "portable"),
    "reference": ("reference", None),
}
"""What each backend of this package opens (None: any flavour); best backend first. A backend from
elsewhere is given the first variant, and refuses what it cannot open."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """A loaded backend. degraded: why it is not the best one for the bundle, None if it is."""

    backend: Backend
    degraded: str | None = None


def open_backend(
    folder: Path, manifest: Manifest, name: str, threads: int | None, kv_cache: str | None = None
) -> Opened:
    """Load the target model of a bundle.

    name: of the registry, or "auto": the first backend that has a variant it can open; where our
    own kernels cannot run, the portable variant, with a warning. A backend class is constructed as
    `Class(folder, model_spec, variant, threads=None, kv_cache=None)`.

    Raises:
        OptionError: no such backend, or it refuses an option.
        BundleError: the bundle has no variant for it. BackendError: it cannot run here.
    """
    degraded = None
    if name == "auto":
        name, variant, degraded = _choose(manifest)
        backend_class = lookup("backend", BACKENDS, name)
    else:
        backend_class = lookup("backend", BACKENDS, name)
        variant = variant_for(manifest, name)
    options: dict[str, Any] = {} if kv_cache is None else {"kv_cache": kv_cache}
    backend = backend_class(folder, manifest.model, variant, threads=threads, **options)
    if degraded is not None:
        _log.warning("slower than it could be, with the backend %r: %s", name, degraded)
    return Opened(backend, degraded)


def _choose(manifest: Manifest) -> tuple[str, Variant, str | None]:
    """The best backend, its variant, and what speaks against a better one."""
    degraded = None
    for name in OPENS:
        found = _find(manifest, name)
        if name not in BACKENDS or found is None:
            continue
        if degraded is not None and found.target_format == "reference":
            continue  # an oracle for tests: nobody wants it for want of something else
        problem = _problem(name)
        if problem is None:
            return name, found, degraded
        degraded = problem
    if degraded is not None:
        raise BackendError(
            f"{degraded}. The bundle has no portable variant ({_content(manifest)}): export it "
            "again with --format hotpath,onnx, or, for a name or checkpoint, give --backend "
            "onnxruntime"
        )
    raise BundleError(f"no backend opens this bundle ({_content(manifest)}); export it again")


def _problem(name: str) -> str | None:
    if name != "hotpath":
        return None
    from quickdraft.runtime.backends import hotpath

    return hotpath.problem()


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
