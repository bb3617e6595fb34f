"""Where and with what something was measured: part of every result that is kept."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from quickdraft import __version__
from quickdraft.device_profiles import machine

_PACKAGES = ("numpy", "onnxruntime", "tokenizers")


def circumstances() -> dict[str, Any]:
    """Date, version, commit, command line, machine and versions, as plain JSON types."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "commit": _commit(),
        "command": _command(),
        "machine": {
            "processor": machine.cpu_name(),
            "features": machine.cpu_features(),
            "physical_cores": machine.physical_cores(),
            "processors": machine.usable_processors(),
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version()} | _versions(),
    }


def name_only(argument: str) -> str:
    """The last part of an absolute path: folders are private to a machine."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The commit of the checkout that this runs from, marked if files differ from it."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        return subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+changes", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _command() -> str:
    """The command line; names of files are enough."""
    return " ".join(["quickdraft", *map(name_only, sys.argv[1:])])
