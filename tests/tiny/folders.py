"""Folders that last as long as the tests, for what is made once and cached."""

from __future__ import annotations

import tempfile
from pathlib import Path

_kept: list[tempfile.TemporaryDirectory[str]] = []


def lasting_folder(prefix: str = "quickdraft-") -> Path:
    """An empty folder, removed when the process ends."""
    _kept.append(tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True))
    return Path(_kept[-1].name)
