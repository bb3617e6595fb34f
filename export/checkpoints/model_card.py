"""The licence a model card states: the front matter of the README.md beside a checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

MAX_FRONT_MATTER = 64 << 10

_FRONT_MATTER = re.compile(r"\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_PLAIN = re.compile(r"[\w][\w .,+/()-]{0,99}")


def read_licence(folder: Path) -> str | None:
    """The licence in `README.md` of a folder, or None if it states none.

    Only `license: NAME` and, where that is `other`, `license_name: NAME` are understood, each on a
    line of its own, as the hub writes them; everything else in a card is left alone.
    """
    try:
        with (folder / "README.md").open("rb") as file:
            text = file.read(MAX_FRONT_MATTER).decode("utf-8", errors="replace")
    except OSError:  # no card; a licence is never worth failing for
        return None
    front = _FRONT_MATTER.match(text)
    if front is None:
        return None
    licence = _value(front[1], "license")
    return _value(front[1], "license_name") or licence if licence == "other" else licence


def _value(front: str, key: str) -> str | None:
    """A plain scalar of the top level, without quotes and comments."""
    line = re.search(rf"^{key}:[ \t]*([^\r\n]*)", front, re.MULTILINE)
    text = re.sub(r"\s+#.*", "", line[1]).strip().strip("\"'") if line else ""
    return text if _PLAIN.fullmatch(text) else None
