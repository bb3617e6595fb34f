"""The file of an n-gram store: small, checked, and never half written.

    24 bytes    magic, version, size of the vocabulary, number of entries, CRC-32 of all the rest
    32 bytes    SHA-256 of the key of the target's bundle
    8 n bytes   uint64, keys of n-grams
    4 n bytes   uint32, tokens that followed
    n bytes     uint8, how often

All little-endian. A file is replaced as a whole, so a reader sees the old one or the new one and a
process may die at any moment. Of several processes each adds, under a lock, what the file has
gained since it read it; counts of one entry are not summed, the larger one counts.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from quickdraft.drafters.ngram_table import MAX_COUNT, Entries, NgramTable
from quickdraft.errors import BundleError
from quickdraft.hashes import open_regular, write_atomically

MAGIC = b"QDNGRAM\n"
VERSION = 1
MAX_ENTRIES = 1 << 22
LOCK_SECONDS = 2.0
_HEAD = struct.Struct("<8sIIII")  # magic, version, vocabulary, entries, checksum
_ENTRY_BYTES = 13

_log = logging.getLogger(__name__)


class _Damaged(Exception):
    """Why a file cannot be used."""


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    """What changes when a file is replaced."""
    return found.st_ino, found.st_size, found.st_mtime_ns


class NgramFile:
    """Where the store of one target is kept.

    folder: made when something is saved. key: tells the target's bundle from any other. vocab_size:
    its tokens are below this.
    """

    def __init__(self, folder: Path, key: str, vocab_size: int) -> None:
        self._owner = hashlib.sha256(key.encode()).digest()
        self._vocab_size = vocab_size
        self.path = folder / f"ngrams-{self._owner.hex()[:16]}.bin"
        self._seen: tuple[int, int, int] | None = None

    def load(self, table: NgramTable) -> None:
        """Add what the file holds to a table. A file that cannot be used is left alone with a
        warning, and replaced when the store is saved."""
        try:
            entries = self._read()
        except FileNotFoundError:
            return
        except (_Damaged, BundleError, OSError) as error:
            _log.warning("the n-gram store %s starts empty: %s", self.path, error)
            return
        if entries is not None:
            table.merge(entries)

    def save(self, table: NgramTable) -> bool:
        """Write a table, with what others have added to the file; False, with a warning, if that
        was not possible: the table is as it was, or has gained theirs."""
        from filelock import FileLock  # takes longer to import than a store to read

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_suffix(".lock"), timeout=LOCK_SECONDS):
                self._remove_leftovers()
                self.load(table)
                write_atomically(self.path, self._pack(table.entries()))
                self._seen = _identity(self.path.stat())
        except OSError as error:  # and a lock's Timeout is one
            _log.warning("the n-gram store %s could not be saved: %s", self.path, error)
            return False
        return True

    def _remove_leftovers(self) -> None:
        """Remove what writers left who died: the lock is ours, so nobody writes."""
        for leftover in self.path.parent.glob(f".{self.path.name}.*"):
            with suppress(OSError):
                leftover.unlink()

    def _read(self) -> Entries | None:
        """What the file holds; None if nobody has changed it since it was read or written here."""
        file, found = open_regular(self.path)
        with file:
            if _identity(found) == self._seen:
                return None
            self._seen = _identity(found)
            if found.st_size > _HEAD.size + len(self._owner) + MAX_ENTRIES * _ENTRY_BYTES:
                raise _Damaged(f"it has {found.st_size} bytes, more than a store ever has")
            return self._unpack(file.read())

    def _pack(self, entries: Entries) -> bytes:
        body = b"".join(
            (
                self._owner,
                entries.keys.astype("<u8").tobytes(),
                entries.tokens.astype("<u4").tobytes(),
                entries.counts.astype("u1").tobytes(),
            )
        )
        count = len(entries.keys)
        return _HEAD.pack(MAGIC, VERSION, self._vocab_size, count, zlib.crc32(body)) + body

    def _unpack(self, data: bytes) -> Entries:
        if len(data) < _HEAD.size + len(self._owner):
            raise _Damaged(f"it ends after {len(data)} bytes")
        magic, version, vocab_size, count, checksum = _HEAD.unpack_from(data)
        body = data[_HEAD.size :]
        if magic != MAGIC:
            raise _Damaged("it is no n-gram store")
        if version != VERSION:
            raise _Damaged(f"its version is {version}, and this quickdraft reads {VERSION}")
        if len(body) != len(self._owner) + count * _ENTRY_BYTES:
            raise _Damaged(f"{count} entries do not fill {len(data)} bytes")
        if zlib.crc32(body) != checksum:
            raise _Damaged("its checksum is wrong")
        if vocab_size != self._vocab_size or not body.startswith(self._owner):
            raise _Damaged("it is another model's")
        at = len(self._owner)
        keys = np.frombuffer(body, "<u8", count, at).astype(np.uint64)
        tokens = np.frombuffer(body, "<u4", count, at + 8 * count).astype(np.uint32)
        counts = np.frombuffer(body, "u1", count, at + 12 * count)
        if not (keys.all() and (tokens < vocab_size).all() and (counts <= MAX_COUNT).all()):
            raise _Damaged("it holds values that no store has")
        return Entries(keys, tokens, counts)
