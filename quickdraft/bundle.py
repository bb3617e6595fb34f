"""Open bundles that nobody vouches for; write bundles that are complete or absent.

A file of a bundle is opened by an engine only after its size and its sha256 were compared with the
manifest. Someone who can write to the folder *while* it is opened can still fool that check: such a
person could change the program as well.
"""

from __future__ import annotations

import hashlib
import io
import logging
import mmap
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType

from quickdraft import filenames
from quickdraft.errors import BundleError, OptionError
from quickdraft.hashes import CHUNK, HashMemory, open_regular, storage_error, sync
from quickdraft.manifest import (
    MANIFEST_NAME,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    parse_manifest,
)
from quickdraft.onnx_references import external_locations
from quickdraft.pending import PendingFolder, clean_up
from quickdraft.types import Progress

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were verified when it was opened."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """The place of a listed file."""
        return self.folder / name


def open_bundle(folder: Path, *, progress: Progress | None = None) -> Bundle:
    """Read the manifest and verify every file: sizes always, hashes once per unchanged file.

    Files that the manifest does not list are ignored, with a warning in the log. progress: stage
    `verify`, in bytes.

    Raises:
        BundleError: something is missing, damaged, foreign or newer, or is not a plain file
            inside the folder.
    """
    manifest = read_manifest(folder)
    paths = {name: _checked_path(folder, name, entry) for name, entry in manifest.files.items()}
    counter = _Counter(progress, sum(entry.size for entry in manifest.files.values()))
    with HashMemory() as memory:
        for name, entry in manifest.files.items():
            digest = _digest(paths[name], memory, counter)
            if digest != entry.sha256:
                raise BundleError(
                    f"{folder / name} does not match its sha256 in the manifest ({digest[:12]}... "
                    f"instead of {entry.sha256[:12]}...); the file is damaged or was exchanged: "
                    "fetch or export the bundle again"
                )
    _check_references(paths, manifest)
    for name in _unlisted(folder, manifest):
        _log.warning("%s is in the bundle but not in its manifest; it is ignored", folder / name)
    return Bundle(folder, manifest)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle, whose other files are not looked at.

    Raises:
        BundleError: there is no bundle, or its manifest cannot be used.
    """
    if not folder.exists():
        clean_up(folder)  # a writer may have died while it exchanged an old bundle for a new one
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise BundleError(f"the bundle {folder} {what}")
    path = folder / MANIFEST_NAME
    try:
        file, _ = open_regular(_inside(folder, MANIFEST_NAME))
        with file:
            text = file.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        raise BundleError(
            f"{folder} has no {MANIFEST_NAME}, so it is not a bundle (or was not written to the "
            "end); export the model again"
        ) from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
    return parse_manifest(text, str(path))


def is_bundle(folder: Path) -> bool:
    """Whether a folder claims to be a bundle; it may still be damaged."""
    return (folder / MANIFEST_NAME).is_file()


def _inside(folder: Path, name: str) -> Path:
    """The file a name leads to, which must lie inside the folder whatever links do.

    Hard links are taken as they are: caches make them, and the hash covers what they hold.
    """
    path = folder / name
    try:
        resolved = path.resolve(strict=True)
        root = folder.resolve(strict=True)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, RuntimeError):  # a link to itself, or too many
        raise BundleError(f"{path} is a link that leads nowhere") from None
    if not resolved.is_relative_to(root):
        raise BundleError(f"{path} is a link that leads out of the bundle, to {resolved}")
    return resolved


def _checked_path(folder: Path, name: str, entry: FileEntry) -> Path:
    try:
        path = _inside(folder, name)
        file, found = open_regular(path)
        file.close()
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"{folder / name} is missing, though the manifest lists it; fetch or export the "
            "bundle again"
        ) from None
    except OSError as error:
        raise BundleError(f"{folder / name} cannot be read: {error.strerror or error}") from error
    if found.st_size != entry.size:
        raise BundleError(
            f"{folder / name} has {found.st_size} bytes and the manifest says {entry.size}; the "
            "file is damaged or was exchanged: fetch or export the bundle again"
        )
    return path


class _Counter:
    """Sums up bytes over files, for one bar."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress("verify", self._done, self._total)


def _digest(path: Path, memory: HashMemory, counter: _Counter) -> str:
    try:
        return memory.hash_file(path, on_bytes=counter)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error


def _check_references(paths: Mapping[str, Path], manifest: Manifest) -> None:
    """A graph may only read data that was hashed: files of its own variant."""
    for variant in (variant for variants in manifest.roles.values() for variant in variants):
        if variant.target_format != "onnx":
            continue
        path = paths[variant.model]
        if path.stat().st_size == 0:
            raise BundleError(f"{path} is empty, so it is not an ONNX file")
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            locations = external_locations(data, str(path))
        for location in sorted(locations):
            # ONNX resolves a location from the folder of the graph.
            name = str(PurePosixPath(variant.model).parent / location)
            if filenames.name_problem(location) or name not in variant.files:
                raise BundleError(
                    f"{path} refers to the data file {location[:120]!r}, which the manifest does "
                    "not list for it"
                )


def _unlisted(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Files the manifest does not know, the first few of them."""
    known = {*manifest.files, MANIFEST_NAME}
    seen = 0
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in files + links:
            relative = (Path(parent) / name).relative_to(folder).as_posix()
            if relative not in known:
                yield relative
            seen += 1
            if seen > 2 * MAX_FILES:
                return


class BundleWriter:
    """Writes one bundle; it appears under its name when `finish` returns, or not at all.

        with BundleWriter(folder) as writer:
            with writer.create("model.onnx") as file: ...
            writer.finish(Manifest(..., files=writer.files))

    Raises:
        OptionError: the folder exists, and is no bundle or may not be replaced.
        StorageError: the disk is full, read-only, or forbids writing.
    """

    def __init__(self, folder: Path, *, overwrite: bool = False) -> None:
        self._target = folder.absolute()
        self._overwrite = overwrite
        self._pending = PendingFolder(self._target)
        self._files: dict[str, FileEntry] = {}

    @property
    def root(self) -> Path:
        """The folder that is being written, for tools that make subfolders of their own."""
        return self._pending.path

    @property
    def files(self) -> Mapping[str, FileEntry]:
        """Size and sha256 of what was added so far, as the manifest wants it."""
        return dict(self._files)

    def __enter__(self) -> BundleWriter:
        with self._translated(""):
            clean_up(self._target)
        _require_free(self._target, self._overwrite)
        self._pending.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pending.__exit__(kind, value, trace)

    def path(self, name: str) -> Path:
        """Where a tool that wants a path writes `name`; call `add` when it has."""
        problem = filenames.name_problem(name)
        if problem:
            raise OptionError(f"the file name {name!r} cannot be used in a bundle: {problem}")
        path = self._pending.path / name
        with self._translated(name):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add(self, name: str) -> FileEntry:
        """Hash a file that was written to `path(name)` and put it on the list."""
        with self._translated(name), open(self.path(name), "r+b") as file:
            digest, size = hashlib.sha256(), 0
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
            sync(file)
        self._files[name] = FileEntry(size, digest.hexdigest())
        return self._files[name]

    @contextmanager
    def create(self, name: str) -> Iterator[HashingFile]:
        """Open `name` for writing from start to end; it is hashed on the way."""
        with self._translated(name), HashingFile(self.path(name)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        self._files[name] = FileEntry(file.size, file.digest.hexdigest())

    def add_bytes(self, name: str, data: bytes) -> FileEntry:
        """Write a small file."""
        with self.create(name) as file:
            file.write(data)
        return self._files[name]

    def copy(self, name: str, source: Path) -> FileEntry:
        """Copy a file into the bundle."""
        with open(source, "rb") as origin, self.create(name) as file:
            shutil.copyfileobj(origin, file, CHUNK)
        return self._files[name]

    def finish(self, manifest: Manifest) -> Manifest:
        """Write the manifest, check that it reads back, and let the bundle appear."""
        text = manifest.to_json().encode()
        if parse_manifest(text, MANIFEST_NAME) != manifest or dict(manifest.files) != self._files:
            raise ValueError("the manifest does not describe what was written")  # our own mistake
        with (
            self._translated(MANIFEST_NAME),
            open(self._pending.path / MANIFEST_NAME, "wb") as file,
        ):
            file.write(text)
            sync(file)
        empty = self._target.is_dir() and not any(self._target.iterdir())
        self._pending.publish(replace=self._overwrite or empty)
        return manifest

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise storage_error(error, str(self._target / name)) from error


class HashingFile(io.FileIO):
    """A new file that hashes what is written to it, in order."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "xb")
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | bytearray | memoryview) -> int:  # type: ignore[override]
        """Write all of `data`; a raw file may take less at a time."""
        view = memoryview(data).cast("B")
        total = len(view)
        while view:
            count = super().write(view) or 0
            self.digest.update(view[:count])
            self.size += count
            view = view[count:]
        return total

    def seekable(self) -> bool:
        """No: what was hashed stays as it is."""
        return False


def _require_free(folder: Path, overwrite: bool) -> None:
    """Refuse a name that holds what we did not write, or may not replace."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OptionError(f"{folder} is a file or a link; choose another name for the bundle")
    if not folder.exists() or not any(folder.iterdir()):
        return
    strangers: list[str] | None = None
    with suppress(BundleError):
        strangers = list(_unlisted(folder, read_manifest(folder)))
    if strangers is None:
        raise OptionError(
            f"{folder} exists and is not a sound bundle, so it will not be replaced; choose "
            "another name or remove it"
        )
    if not overwrite:
        raise OptionError(f"{folder} exists already; choose another name, or ask to overwrite it")
    if strangers:
        raise OptionError(
            f"{folder} also holds {strangers[0]!r}, which is not part of the bundle and would be "
            "lost; move it away first"
        )
