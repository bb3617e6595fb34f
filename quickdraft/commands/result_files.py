"""Results that are kept: documents and plots."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quickdraft.errors import MissingExtra, OptionError
from quickdraft.hashes import storage_error, write_atomically


def check_plot(plot: Path | None) -> None:
    """Refuse a plot that could not be drawn before anything is measured.

    Raises:
        OptionError: its name does not end in .png.
        MissingExtra: matplotlib is not installed.
    """
    if plot is None:
        return
    if plot.suffix.lower() != ".png":
        raise OptionError(f"--plot: {plot} does not end in .png")
    if find_spec("matplotlib") is None:
        raise MissingExtra("matplotlib", "bench")


def write_document(file: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON, whole or not at all."""
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_file(file, text.encode())


def write_file(file: Path, data: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        write_atomically(file, data)
    except OSError as error:
        raise storage_error(error, str(file)) from error
