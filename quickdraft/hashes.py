"""Hashes of files, remembered while the files stay the same; and where we may write.

A file is taken for the same while its path, size, times and inode are: hashing a gigabyte at every
start would cost seconds.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from quickdraft import strict_json
from quickdraft.errors import BundleError, StorageError

CHUNK = 1 << 20
MAX_REMEMBERED = 4096
_MAX_RECORD_BYTES = 4 << 20
# A file changed this recently could change again within one tick of its file system's clock.
_SETTLED_NS = 2_000_000_000

Identity = tuple[int, int, int, int, int]


def cache_root() -> Path:
    """The folder of everything we keep: QUICKDRAFT_CACHE, or the platform's cache folder."""
    chosen = os.environ.get("QUICKDRAFT_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("quickdraft", appauthor=False))


def storage_error(error: OSError, what: str) -> StorageError:
    """Translate a failed write of `what`, with the reason and what to do about it."""
    reason = error.strerror or str(error)
    return StorageError(
        f"could not write {what}: {reason}; free some space or choose another place "
        "(QUICKDRAFT_CACHE sets the cache folder)"
    )


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data` so that every reader sees the old or the new, never a half.

    Raises:
        OSError: it could not be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            sync(file)
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def sync(file: BinaryIO) -> None:
    """Push what was written to `file` down to the disk."""
    file.flush()
    os.fsync(file.fileno())


def open_regular(path: Path) -> tuple[io.BufferedReader, os.stat_result]:
    """Open a regular file for reading, without waiting on a pipe or touching a device.

    Raises:
        BundleError: it is something other than a file.
        OSError: it cannot be opened.
    """
    # O_NONBLOCK: opening a pipe must not wait for its other end.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    _require_regular(path, os.stat(path))
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        found = os.fstat(file.fileno())
        _require_regular(path, found)
    except BaseException:
        file.close()
        raise
    return file, found


def _require_regular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, socket or device"
        raise BundleError(f"{path} is {kind}, not a file")


def hash_file(path: Path) -> str:
    """sha256 of one file in hex; see `HashMemory`, which is for several."""
    with HashMemory() as memory:
        return memory.hash_file(path)


def hash_files(paths: Iterable[Path]) -> str:
    """sha256 of the hashes of files, hex, whatever their order; empty for no files.

    Raises:
        BundleError: see hash_file.
    """
    with HashMemory() as memory:
        found = sorted(memory.hash_file(path) for path in paths)
    return hashlib.sha256("\n".join(found).encode()).hexdigest() if found else ""


class HashMemory:
    """The hashes of files seen before, read at the start and written at the end of a `with`."""

    def __init__(self) -> None:
        self._known = _read_memory()
        self._changed = False

    def __enter__(self) -> HashMemory:
        return self

    def __exit__(self, *_: object) -> None:
        if self._changed:
            _write_memory(self._known)

    def hash_file(self, path: Path, *, on_bytes: Callable[[int], None] | None = None) -> str:
        """sha256 of a file in hex, computed only if the file changed since it was last seen.

        on_bytes is called with the number of bytes dealt with since the last call.

        Raises:
            BundleError: it is not a regular file, or it changed while it was read.
            OSError: it cannot be read.
        """
        path = path.resolve()
        file, found = open_regular(path)
        with file:
            known = self._known.get(str(path))
            if known is not None and known[0] == _identity(found):
                if on_bytes is not None:
                    on_bytes(found.st_size)
                return known[1]
            digest = _stream(file, on_bytes)
            after = os.fstat(file.fileno())
        if _identity(after) != _identity(found):
            raise BundleError(f"{path} changed while it was read; nothing else may write to it")
        newest = max(found.st_mtime_ns, found.st_ctime_ns)
        if time.time_ns() - newest > _SETTLED_NS:
            self._known.pop(str(path), None)  # so that it becomes the newest entry
            self._known[str(path)] = (_identity(found), digest)
            self._changed = True
        return digest


def _identity(found: os.stat_result) -> Identity:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _stream(file: io.BufferedReader, on_bytes: Callable[[int], None] | None) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK))
    while count := file.readinto(buffer):
        digest.update(buffer[:count])
        if on_bytes is not None:
            on_bytes(count)
    return digest.hexdigest()


def _record_path() -> Path:
    return cache_root() / "verified.json"


def _read_memory() -> dict[str, tuple[Identity, str]]:
    """What is remembered. Anything wrong with the record means nothing is."""
    try:
        value = strict_json.loads(
            _record_path().read_bytes(), max_bytes=_MAX_RECORD_BYTES, max_depth=8
        )
        return {
            str(path): (_five_integers(entry[:5]), _hex_digest(entry[5]))
            for path, entry in value.items()
        }
    except (OSError, strict_json.JsonProblem):
        return {}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):  # JSON of another shape
        return {}


def _five_integers(values: list[int]) -> Identity:
    device, inode, size, modified, changed = (int(value) for value in values)
    return device, inode, size, modified, changed


def _hex_digest(text: str) -> str:
    if len(text) != 64 or len(bytes.fromhex(text)) != 32:
        raise ValueError(text)
    return text


def _write_memory(known: dict[str, tuple[Identity, str]]) -> None:
    """Keep the newest entries. Of two writers at once the later wins: the rest is hashed anew."""
    kept = list(known.items())[-MAX_REMEMBERED:]
    data = json.dumps({path: [*identity, digest] for path, (identity, digest) in kept}).encode()
    # A cache that cannot be written costs time, not correctness.
    with suppress(OSError):
        write_atomically(_record_path(), data)
