"""The repository as the house tests see it: its files, modules and folders."""

from __future__ import annotations

import ast
import functools
import subprocess
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def pyproject() -> dict[str, Any]:
    """pyproject.toml, parsed."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@functools.cache
def package_folders() -> dict[str, str]:
    """Folder by package name, from the packaging table: {"quickdraft.export": "export", ...}."""
    table = pyproject()["tool"]["scikit-build"]["wheel"]["packages"]
    return {name.replace("/", "."): folder for name, folder in table.items()}


@functools.cache
def files() -> tuple[Path, ...]:
    """Every file that git tracks or would track, links left out, relative to the root."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    paths = {Path(name) for name in listed if name}
    return tuple(sorted(p for p in paths if (ROOT / p).is_file() and not (ROOT / p).is_symlink()))


def python_files() -> list[Path]:
    """Every Python source, relative to the root."""
    return [path for path in files() if path.suffix == ".py"]


def text_files() -> list[Path]:
    """Every file a person reads, relative to the root; the licence is not ours to word."""
    kinds = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".txt", ".cfg", ".sh", ".h", ".cpp"}
    names = {"run", ".editorconfig", ".gitignore"}
    return [path for path in files() if path.suffix in kinds or path.name in names]


@functools.cache
def modules() -> dict[str, Path]:
    """Path by dotted name of every module of the package."""
    found: dict[str, Path] = {}
    for package, folder in package_folders().items():
        for path in python_files():
            if path.parts[0] == folder:
                inside = path.relative_to(folder).with_suffix("").parts
                parts = inside[:-1] if inside[-1] == "__init__" else inside
                found[".".join((package, *parts))] = path
    return found


@functools.cache
def read(path: Path) -> str:
    """Text of a file, by its path relative to the root."""
    return (ROOT / path).read_text(encoding="utf-8")


@functools.cache
def parse(path: Path) -> ast.Module:
    """Syntax tree of a source, by its path relative to the root."""
    return ast.parse(read(path), str(path))
