"""The cache of models: what is in it, how it is shared by processes, how it is emptied.

    <cache>/checkpoints/<alias>/<file>                  fetched, verified
    <cache>/bundles/<model>-<fingerprint>-<weights>-<formats>/   exported, verified when opened;
                                                        with @<shapes> where some were asked for
    <cache>/hub/<model>.json                            which snapshot a name of the hub means
    <cache>/locks/                                      held while one process makes one of them

Names that begin with a dot are work in progress and never models.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from quickdraft import strict_json
from quickdraft.errors import ModelNotFound
from quickdraft.hashes import cache_root, storage_error, write_atomically
from quickdraft.pending import clean_up_folder
from quickdraft.types import Progress

_FINGERPRINT_DIGITS = 12
_BUNDLE_NAME = re.compile(
    r"(.+)-([0-9a-f]{12})-([a-z0-9_]+)(?:-([a-z0-9_+-]+))?(?:@([a-z0-9.-]+))?"
)


@dataclass(frozen=True)
class Entry:
    """One thing in the cache. model: the name it was asked for by, as `slug` writes it; name: its
    own, which no other entry has. size: bytes on disk; modified: seconds since 1970."""

    name: str
    model: str
    kind: Literal["bundle", "checkpoint"]
    path: Path
    size: int
    modified: float
    weights: str | None = None
    formats: str | None = None
    fingerprint: str | None = None


def cache_folder() -> Path:
    """The root of the cache; QUICKDRAFT_CACHE overrides the platform's place."""
    return cache_root()


def slug(model: str) -> str:
    """A model's name as the name of a folder: `owner/name:a.gguf` becomes `owner--name+a.gguf`."""
    plain = model.replace("/", "--").replace(":", "+")
    return re.sub(r"[^A-Za-z0-9._@+-]+", "-", plain).strip(".-")[:100] or "model"


def checkpoint_folder(model: str) -> Path:
    """Where the checkpoint of an alias goes."""
    return cache_root() / "checkpoints" / slug(model)


def bundle_folder(
    model: str, fingerprint: str, weights: str, formats: Sequence[str], shapes: str = ""
) -> Path:
    """Where the bundle of a model goes. fingerprint: sha256 of its checkpoint, hex. formats: names
    of emitters. shapes: key of their StaticShapes."""
    # `-` parts the fields of the name.
    form = f"{weights.replace('-', '_')}-{'+'.join(formats)}{'@' if shapes else ''}{shapes}"
    name = f"{slug(model)}-{fingerprint[:_FINGERPRINT_DIGITS]}-{form}"
    return cache_root() / "bundles" / name


def entries() -> tuple[Entry, ...]:
    """Everything in the cache, by name."""
    found = [*_entries_in("checkpoints", "checkpoint"), *_entries_in("bundles", "bundle")]
    return tuple(sorted(found, key=lambda entry: (entry.model, entry.kind, entry.name)))


def _entries_in(part: str, kind: Literal["bundle", "checkpoint"]) -> Iterator[Entry]:
    folder = cache_root() / part
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        match = _BUNDLE_NAME.fullmatch(path.name) if kind == "bundle" else None
        if path.name.startswith(".") or not path.is_dir() or (kind == "bundle" and not match):
            continue
        with suppress(FileNotFoundError):  # another process may remove it just now
            yield Entry(
                name=path.name,
                model=match[1] if match else path.name,
                kind=kind,
                path=path,
                size=_size(path),
                modified=path.stat().st_mtime,
                weights=match[3].replace("_", "-") if match else None,
                formats=match[4] if match else None,
                fingerprint=match[2] if match else None,
            )


def _size(folder: Path) -> int:
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with suppress(FileNotFoundError):
                total += os.lstat(Path(parent) / name).st_size
    return total


def find(name: str) -> tuple[Entry, ...]:
    """Entries of a model (all its bundles, and its checkpoint), or the one of that name.

    Raises:
        ModelNotFound: nothing in the cache is called so.
    """
    everything = entries()
    # Only compared with what is there, never joined to a path: `..` is a name like any other.
    wanted = slug(name) if "/" in name and not name.startswith((".", "/")) else name
    found = tuple(entry for entry in everything if wanted in (entry.name, entry.model))
    if found:
        return found
    near = get_close_matches(name, {entry.model for entry in everything}, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ModelNotFound(
        f"{name!r} is not in the cache {cache_root()}{hint} ('quickdraft list' shows what is)"
    )


def remove(name: str) -> int:
    """Remove what `find` finds; gives the number of bytes that became free.

    Raises:
        ModelNotFound: nothing in the cache is called so.
        StorageError: the cache cannot be written.
    """
    found = find(name)
    tidy()
    for entry in found:
        with lock(entry.name):
            discard(entry.path)
    with suppress(FileNotFoundError):
        _hub_record(found[0].model).unlink()
    return sum(entry.size for entry in found)


def discard(path: Path) -> None:
    """Remove a folder of the cache: out of sight at once, then bit by bit."""
    trash = path.with_name(f".trash-{secrets.token_hex(6)}")
    try:
        os.rename(path, trash)
    except FileNotFoundError:
        return
    except OSError as error:
        raise storage_error(error, str(path)) from error
    shutil.rmtree(trash, ignore_errors=True)


def tidy() -> None:
    """Remove what killed processes left half-done. What can be resumed stays."""
    for part in ("bundles", "checkpoints"):
        folder = cache_root() / part
        clean_up_folder(folder)
        for path in folder.glob(".trash-*"):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def lock(name: str, progress: Progress | None = None) -> Iterator[None]:
    """Hold the right to make or remove the entry `name`, against all processes of this machine.

    The lock ends with the process that holds it, however that ends. progress: told `wait` if
    another process holds it now.

    Raises:
        StorageError: the cache cannot be written.
    """
    path = cache_root() / "locks" / f"{name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(path)
        try:
            held.acquire(timeout=0)
        except Timeout:
            if progress is not None:
                progress("wait", 0, 0)
            held.acquire()
    except OSError as error:
        raise storage_error(error, str(path)) from error
    try:
        yield
    finally:
        held.release()


@dataclass(frozen=True)
class HubRecord:
    """What a name of the hub meant when it was fetched: a checkpoint and its fingerprint."""

    path: str
    fingerprint: str


def _hub_record(model: str) -> Path:
    return cache_root() / "hub" / f"{slug(model)}.json"


def read_hub_record(model: str) -> HubRecord | None:
    """What is remembered of a name of the hub; None if nothing, or nothing sound, is."""
    try:
        value = strict_json.loads(_hub_record(model).read_bytes(), max_bytes=65536, max_depth=2)
        record = strict_json.decode(HubRecord, value, "the record")
    except (OSError, strict_json.JsonProblem):
        return None
    return record if re.fullmatch("[0-9a-f]{64}", record.fingerprint) else None


def write_hub_record(model: str, record: HubRecord) -> None:
    """Remember what a name of the hub means."""
    data: dict[str, Any] = strict_json.encode(record)
    try:
        write_atomically(_hub_record(model), json.dumps(data).encode())
    except OSError as error:
        raise storage_error(error, str(_hub_record(model))) from error
