"""Which names a file of a bundle may have: judged as text, under the rules of every system.

A bundle written on one system must open on the others, and a hostile one must not reach outside its
folder on any, so POSIX and Windows rules both hold everywhere.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

MAX_NAME = 1024
MAX_PART = 255  # bytes of UTF-8, the limit of common file systems

_FORBIDDEN = frozenset('\\:<>"|?*')
_RESERVED = re.compile(r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9¹²³])", re.IGNORECASE)


def name_problem(name: str) -> str | None:
    """Why `name` (parts joined by `/`) cannot be a file of a bundle, or None if it can."""
    if not name or len(name) > MAX_NAME:
        return f"it is {len(name)} characters long; 1 to {MAX_NAME} are allowed"
    if name.startswith(("/", "\\")):
        return "it is absolute"
    for part in name.split("/"):
        problem = _part_problem(part)
        if problem:
            return problem
    return None


def _part_problem(part: str) -> str | None:
    if part in ("", ".", ".."):
        return f"it has the part {part!r}"
    if not part.isprintable():  # also NUL, line ends, and marks that reorder text on screen
        return "it has an unprintable character"
    if found := _FORBIDDEN.intersection(part):
        return f"it has the character {min(found)!r}"
    if part[-1] in ". " or part[0] == " ":
        return "a part begins with a space, or ends in a dot or a space"
    if len(part.encode("utf-8")) > MAX_PART:
        return f"a part is longer than {MAX_PART} bytes"
    if _RESERVED.fullmatch(part.split(".")[0].rstrip()):
        return f"{part!r} is a device on Windows"
    return None


def collision(names: Iterable[str]) -> tuple[str, str] | None:
    """Two of `names` that some file system takes for the same, or None.

    That is equality without case and after Unicode normalisation, and a file that another name
    uses as its folder.
    """
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for name in names:
        folded = fold(name)
        if folded in seen:
            return seen[folded], name
        seen[folded] = name
        parts = folded.split("/")
        for end in range(1, len(parts)):
            folders.setdefault("/".join(parts[:end]), name)
    for folded, name in seen.items():
        if folded in folders:
            return name, folders[folded]
    return None


def fold(name: str) -> str:
    """The form under which names of one folder must differ."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
