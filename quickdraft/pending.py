"""A folder that appears complete or not at all, whatever kills its writer.

Files go into a hidden sibling, `.NAME.new-ID`, which is renamed into place at the end. A lock file
beside it, `.NAME.new-ID.lock`, is held as long as the writer lives, so that the next writer can
tell rubbish from work in progress; process ids would lie across containers that share a disk.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from quickdraft.errors import OptionError
from quickdraft.hashes import storage_error

_LOCK_NAME = re.compile(r"\.(.+)\.new-[0-9a-f]{12}\.lock", re.DOTALL)


class PendingFolder:
    """A context manager whose `path` becomes `target` by `publish`, or is removed at the end."""

    def __init__(self, target: Path) -> None:
        self.target = target.absolute()
        self.path = self.target.with_name(f".{self.target.name}.new-{secrets.token_hex(6)}")
        # mode: a cleaner of another user of the same disk must be able to ask for the lock.
        self._lock = FileLock(_lock_of(self.path), mode=0o666)

    def __enter__(self) -> PendingFolder:
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            clean_up(self.target)
            self._lock.acquire()
            self.path.mkdir()
        except OSError as error:
            self._discard()
            raise storage_error(error, str(self.target)) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._discard()

    def _discard(self) -> None:
        _settle(self.target, self.path)
        self._lock.release()
        with suppress(OSError):
            os.unlink(self._lock.lock_file)

    def publish(self, *, replace: bool) -> None:
        """Give the folder its name; with `replace`, an older folder of that name makes room.

        Raises:
            OptionError: the name was taken meanwhile.
            StorageError: renaming failed. The older folder is then where it was.
        """
        try:
            _sync_folders(self.path)
            if replace and self.target.exists():
                # Between the two renames there is nothing at `target`: `_settle` repairs that,
                # now if the second one fails, or at the next start if we die just there.
                os.rename(self.target, _old_of(self.path))
            os.rename(self.path, self.target)
            _sync_folder(self.target.parent)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                raise OptionError(f"another process wrote {self.target} meanwhile") from error
            raise storage_error(error, str(self.target)) from error
        finally:
            _settle(self.target, self.path)


def clean_up(target: Path) -> None:
    """Remove what dead writers of `target` left, and finish an exchange that one of them began."""
    clean_up_folder(target.absolute().parent, only=target.name)


def clean_up_folder(folder: Path, *, only: str | None = None) -> None:
    """`clean_up` for all names in a folder, or for one."""
    try:
        found = [(path, _LOCK_NAME.fullmatch(path.name)) for path in sorted(folder.iterdir())]
    except (FileNotFoundError, NotADirectoryError):
        return
    for path, match in found:
        if match is not None and only in (None, match[1]):
            _clean_one(folder / match[1], path)


def _clean_one(target: Path, lock_file: Path) -> None:
    # A lock that is held, or a folder we may not write to, has no rubbish of ours.
    with suppress(Timeout, OSError), FileLock(lock_file, mode=0o666, timeout=0):
        _settle(target, lock_file.with_suffix(""))
        os.unlink(lock_file)


def _settle(target: Path, new: Path) -> None:
    """Undo or finish the work of one writer: afterwards only `target` is left, old or new."""
    old = _old_of(new)
    if old.exists() and not target.exists():
        os.rename(old, target)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(new, ignore_errors=True)


def _old_of(new: Path) -> Path:
    return new.with_name(new.name.replace(".new-", ".old-"))


def _lock_of(new: Path) -> Path:
    return new.with_name(new.name + ".lock")


def _sync_folders(root: Path) -> None:
    """Push the entries of a folder and of those below it to the disk."""
    for folder, _, _ in os.walk(root, topdown=False):
        _sync_folder(Path(folder))


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there, and renames are journalled
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
