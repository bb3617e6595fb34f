"""Writes the tables of docs/supported.md that are generated from the registry.

`python dev.py docs` rewrites them; with `--check` nothing is written and a stale table fails.
Reads the sources instead of importing them, so that it needs nothing installed.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "supported.md"
TABLES = {
    "architectures": "ARCHITECTURES",
    "emitters": "EMITTERS",
    "backends": "BACKENDS",
    "drafters": "DRAFTERS",
}
MARKERS = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def registry() -> dict[str, dict[str, str]]:
    """The tables of quickdraft/registry.py by name, read as text."""
    tree = ast.parse((ROOT / "quickdraft" / "registry.py").read_text(encoding="utf-8"))
    found: dict[str, dict[str, str]] = {}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            found[node.target.id] = ast.literal_eval(node.value)
    return found


def source_of(import_path: str) -> Path:
    """The file of "quickdraft.folder.module:attribute", relative to the root."""
    parts = import_path.split(":")[0].split(".")[1:]
    top = ROOT / parts[0]
    base = Path(*parts) if top.is_dir() else Path("quickdraft", *parts)
    package = base / "__init__.py"
    return package if (ROOT / package).exists() else base.with_suffix(".py")


def summary(path: Path) -> str:
    """First sentence of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")


def render(entries: Mapping[str, str]) -> str:
    """One row per file: the names it answers to, the file, what it says about itself."""
    names: dict[Path, list[str]] = {}
    for name, import_path in entries.items():
        names.setdefault(source_of(import_path), []).append(f"`{name}`")
    rows = [
        f"| {', '.join(sorted(group))} | [{path.name}](../{path.as_posix()}) | {summary(path)} |"
        for path, group in sorted(names.items(), key=lambda item: min(item[1]))
    ]
    return "\n".join(["| Name | File | |", "|---|---|---|", *rows]) + "\n"


def regenerate(text: str) -> str:
    """`text` with every marked table made anew."""
    tables = registry()
    return MARKERS.sub(
        lambda match: match[1] + render(tables[TABLES[match[2]]]) + match[4],
        text,
    )


def main() -> int:
    """Rewrite or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if stale")
    options = parser.parse_args()
    before = PAGE.read_text(encoding="utf-8")
    after = regenerate(before)
    if after == before:
        return 0
    if options.check:
        print("the tables of docs/supported.md are stale; run: python dev.py docs", file=sys.stderr)
        return 1
    PAGE.write_text(after, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
