"""Choose and construct the backend of a bundle, and of the parts beside its target."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.device_names import base, needs_static, split_device
from quickdraft.device_profiles.profile import Profile, profile_named
from quickdraft.errors import BackendError, BundleError, DeviceError, InputError
from quickdraft.manifest import Flavour, Manifest, Role, TargetFormat, Variant
from quickdraft.registry import BACKENDS, PREDICTORS, lookup
from quickdraft.runtime.backends.base import Backend, HeadBackend, Predictor
from quickdraft.runtime.backends.simulated import PREFIX as SIMULATED
from quickdraft.runtime.backends.simulated import SimulatedBackend

OPENS: dict[str, tuple[TargetFormat, Flavour | None]] = {
    "hotpath": ("onnx", "hotpath"),
    "onnxruntime": ("onnx", "portable"),
    "onnxruntime_static": ("onnx", "static"),
    "openvino": ("openvino", None),
    "onnxruntime_adapted": ("onnx", "adapted"),
    "openvino_adapted": ("openvino", "adapted"),
    "coreml": ("coreml", None),
    "reference": ("reference", None),
}
"""What each backend of this package opens (None: any flavour); best backend first. A backend from
elsewhere is given the first variant, and refuses what it cannot open."""
_STATIC = {"onnxruntime": "onnxruntime_static"}
"""Which backend stands in for another where the graphs are static."""
_ADAPTED = {"onnxruntime": "onnxruntime_adapted", "openvino": "openvino_adapted"}
"""The same where they are other exporters'."""
_TRAINED_BY: Mapping[Role, str] = {
    "auxiliary": "predictor",
    "predictor": "predictor",
    "judge": "draft --kind judge",
}
"""What of `quickdraft train` makes parts of a role, where it is not `draft`."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """A loaded backend. degraded: why it is not the best one for the bundle, or what of it does not
    run on its device; None if neither."""

    backend: Backend
    degraded: str | None = None


def open_backend(
    folder: Path, manifest: Manifest, name: str, threads: int | None, kv_cache: str | None = None
) -> Opened:
    """Load the target model of a bundle.

    name: of the registry, or "auto": the first backend that has a variant it can open; where our
    own kernels cannot run, the portable variant, with a warning. `name:device` runs on a device of
    the backend, and `simulated:profile` in the time of a device that is not here. A backend class
    is constructed as `Class(folder, model_spec, variant, threads=None, kv_cache=None)`, and given
    `device` where one is named, and `encoder`, a variant, for an encoder-decoder model. Its
    `degraded`, where it has one, says what does not run on its device.

    Raises:
        OptionError: no such backend, or it refuses an option.
        DeviceError: the device is unknown, absent, or cannot be simulated.
        BundleError: the bundle has no variant for it. BackendError: it cannot run here.
    """
    name, device = split_device(name)
    if name == SIMULATED:
        return _simulated(folder, manifest, profile_named(device), threads, kv_cache)
    degraded = None
    if name == "auto":
        name, variant, degraded = _choose(manifest)
        backend_class = lookup("backend", BACKENDS, name)
    else:
        name = backend_for(manifest, name, device)
        backend_class = lookup("backend", BACKENDS, name)
        variant = variant_for(manifest, name, device)
    options: dict[str, Any] = {} if kv_cache is None else {"kv_cache": kv_cache}
    if device:
        options["device"] = device
    if manifest.model.source is not None:
        options["encoder"] = find_encoder(manifest, variant)
    backend = backend_class(folder, manifest.model, variant, threads=threads, **options)
    degraded = degraded or getattr(backend, "degraded", None)
    if degraded is not None:
        _log.warning("slower than it could be, with the backend %r: %s", name, degraded)
    return Opened(backend, degraded)


def backend_for(manifest: Manifest, name: str, device: str = "") -> str:
    """The backend that opens what a bundle has where `name` is asked for, itself if it can; "auto"
    is the best one.

    Raises:
        BundleError: none opens the bundle. BackendError: none of those can run here.
    """
    if name == "auto":
        return _choose(manifest)[0]
    static, adapted = _STATIC.get(name, name), _ADAPTED.get(name, name)
    ways = (static, adapted) if needs_static(name, device) else (name, static, adapted)
    return next((way for way in ways if _find(manifest, way) is not None), ways[0])


def find_encoder(manifest: Manifest, target: Variant) -> Variant:
    """The encoder whose memories a target attends to.

    Raises:
        BundleError: there is none.
    """
    form = (target.target_format, target.flavour)
    for variant in manifest.roles.get("encoder", ()):
        if (variant.target_format, variant.flavour) == form:
            return variant
    raise BundleError(f"the bundle has no {' '.join(form)} encoder; export it again")


def _simulated(
    folder: Path, manifest: Manifest, profile: Profile, threads: int | None, kv_cache: str | None
) -> Opened:
    if manifest.roles.get("encoder"):
        raise DeviceError(
            f"{manifest.source.name} has an encoder, and only decoder-only models are simulated; "
            "leave --device out"
        )
    opened = open_backend(folder, manifest, "auto", threads, kv_cache)
    try:
        weights = weight_bytes(manifest, opened.backend)
        return Opened(SimulatedBackend(opened.backend, profile, weights), opened.degraded)
    except BaseException:
        opened.backend.close()
        raise


def weight_bytes(manifest: Manifest, backend: Backend) -> int:
    """Bytes of the files of the target that a backend was opened with."""
    return sum(manifest.files[file].size for file in opened_variant(manifest, backend).files)


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
    if name == "coreml":
        from quickdraft.runtime.backends import coreml_engine

        return coreml_engine.problem()
    if name != "hotpath":
        return None
    from quickdraft.runtime.backends import hotpath

    return hotpath.problem()


def variant_for(manifest: Manifest, name: str, device: str = "") -> Variant:
    """The variant of the target model that a backend opens for a device of its own.

    Raises:
        BundleError: there is none.
    """
    found = parts(manifest, name, "target")
    library = base(name)
    if needs_static(library, device) and name != _ADAPTED.get(library):
        found = tuple(variant for variant in found if variant.flavour == "static")
        if not found:
            form = {"onnxruntime": "onnx"}.get(library, library)
            raise BundleError(
                f"{library}:{device} takes graphs of fixed shapes only, and the bundle has none "
                f"({_content(manifest)}); export it again with --format {form}-static"
            )
    if not found:
        raise BundleError(
            f"the bundle has no variant for the backend {name!r} ({_content(manifest)}); "
            "use another backend, or export it again"
        )
    return found[0]


def opened_variant(manifest: Manifest, backend: Backend) -> Variant:
    """The variant that a loaded backend was opened with.

    Raises:
        BundleError: there is none; it is another bundle's.
    """
    for variant in parts(manifest, backend.name, "target"):
        if variant.flavour == backend.flavour:
            return variant
    return variant_for(manifest, backend.name)


def _find(manifest: Manifest, name: str) -> Variant | None:
    return next(iter(parts(manifest, name, "target")), None)


def _opens(name: str, variant: Variant) -> bool:
    """Whether the backend `name` opens a variant; one from elsewhere is asked itself."""
    wanted, flavour = OPENS.get(name, (None, None))
    if name in OPENS and flavour is None and variant.flavour == "adapted":
        return False
    return wanted in (None, variant.target_format) and flavour in (None, variant.flavour)


def _content(manifest: Manifest) -> str:
    found = [f"{v.target_format} {v.flavour}" for v in manifest.roles.get("target", ())]
    return f"it has: {', '.join(found)}" if found else "it has no target model"


def parts(manifest: Manifest, name: str, role: Role) -> tuple[Variant, ...]:
    """The parts of a role that work with the backend `name`, best first."""
    return tuple(variant for variant in manifest.roles.get(role, ()) if _opens(name, variant))


def find_part(
    manifest: Manifest, name: str, role: Role, part: str | None = None, flavour: str = ""
) -> Variant:
    """The part of a role for the backend `name`. part: which one; None: the first. flavour: taken
    before others, as a device may take no other.

    Raises:
        InputError: there is none, or none of that name.
    """
    found = parts(manifest, name, role)
    for variant in sorted(found, key=lambda each: each.flavour != flavour):
        if part in (None, variant.name):
            return variant
    wanted = f"no {role}" if part is None else f"no {role} {part!r}"
    others = ", ".join(variant.name for variant in found)
    elsewhere = sorted({f"{v.target_format} {v.flavour}" for v in manifest.roles.get(role, ())})
    if others:
        content = f"it has: {others}"
    elif elsewhere:
        content = f"what it has is for: {', '.join(elsewhere)}"
    else:
        content = "it has none at all"
    raise InputError(
        f"the bundle of {manifest.source.name} has {wanted} for the backend {name!r}; {content}. "
        f"Make one with `quickdraft train {_TRAINED_BY.get(role, 'draft')}`, then add its file "
        "with `quickdraft export --trained FILE`"
    )


def open_part(
    folder: Path,
    manifest: Manifest,
    name: str,
    role: Role,
    part: str | None = None,
    threads: int | None = None,
    kv_cache: str | None = None,
) -> HeadBackend:
    """Load a drafter or auxiliary of a bundle as a backend of its own, whose spec is the part's.

    name: of the registry, as the backend of the target. part: see find_part. A backend class is
    given what it is given in `open_backend`, and for a part with a token map also `vocab_size`, of
    the tokens it reads.

    Raises:
        InputError: see find_part. OptionError: the backend refuses an option.
        BundleError: its files are damaged. BackendError: it cannot run here.
    """
    variant = find_part(manifest, name, role, part)
    options: dict[str, Any] = {} if kv_cache is None else {"kv_cache": kv_cache}
    if variant.token_map is not None:  # then it reads the target's tokens, and puts out its own
        options["vocab_size"] = manifest.model.vocab_size
    backend_class = lookup("backend", BACKENDS, name)
    opened: HeadBackend = backend_class(folder, variant.spec, variant, threads=threads, **options)
    return opened


def open_predictor(
    folder: Path,
    manifest: Manifest,
    backend: Backend,
    part: str | None = None,
    threads: int | None = None,
) -> Predictor:
    """Load a predictor for the caches of the target, which `backend` runs.

    part: see find_part. A class of the registry is constructed as `Class(backend, folder, variant,
    threads=None)`.

    Raises:
        OptionError: no predictors run with this backend. InputError: see find_part.
        BundleError: its files are damaged. BackendError: it cannot run here.
    """
    variant = find_part(manifest, backend.name, "predictor", part, backend.flavour)
    predictor_class = lookup("backend of predictors", PREDICTORS, backend.name)
    opened: Predictor = predictor_class(backend, folder, variant, threads=threads)
    return opened


def read_token_map(folder: Path, variant: Variant, vocab_size: int) -> NDArray[np.int64] | None:
    """The target's token for each of a part's: int64 [vocabulary of the part], None where they are
    the same. vocab_size: of the target.

    Raises:
        BundleError: it is damaged.
    """
    if variant.token_map is None or variant.spec is None:
        return None
    path = folder / variant.token_map
    try:
        found = np.fromfile(path, "<i4").astype(np.int64)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(found) != variant.spec.vocab_size:
        raise BundleError(
            f"{path} holds {len(found)} tokens, and the part {variant.name!r} has "
            f"{variant.spec.vocab_size}; export the model again"
        )
    if found.min() < 0 or found.max() >= vocab_size:
        raise BundleError(
            f"{path} names a token outside the vocabulary of {vocab_size}; export the model again"
        )
    return found
