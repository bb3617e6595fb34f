"""What commands print with: JSON, tables, sizes, and care for terminals that are not there."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import click

# Control characters as their pictures; the second block of them has none.
_VISIBLE = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n\r"}
_VISIBLE |= dict.fromkeys(range(0x7F, 0xA0), "\N{REPLACEMENT CHARACTER}")


def use_utf8() -> None:
    """Make standard output and error take any text, whatever the locale says."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person watches `stream` (a closed stream is None)."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def wants_colour(stream: TextIO | None) -> bool:
    """Colour only on a terminal that can show it, and never against NO_COLOR."""
    return (
        is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )


def report_failure(kind: str, message: str, as_json: bool) -> None:
    """A line for people on standard error; with as_json also an object on standard output."""
    if as_json:
        print_json({"error": {"type": kind, "message": message}})
    label = click.style("error:", fg="red", bold=True) if wants_colour(sys.stderr) else "error:"
    click.echo(f"{label} {message}", err=True)


def dim(text: str) -> str:
    """The same text, grey where colour is wanted on standard error."""
    return click.style(text, dim=True) if wants_colour(sys.stderr) else text


def print_json(value: Any) -> None:
    """Print one JSON document on a line of its own."""
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))


def write(text: str) -> None:
    """Print text of a model at once, without a line break.

    A terminal gets no control characters but tabs and line breaks: a model may say anything, and
    escape sequences are commands.
    """
    if sys.stdout is not None:
        sys.stdout.write(text.translate(_VISIBLE) if is_terminal(sys.stdout) else text)
        sys.stdout.flush()


def table(rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> str:
    """Rows as aligned columns, two spaces apart; columns in `right` lean right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def facts(pairs: Mapping[str, object]) -> str:
    """Names and values, one pair a line."""
    return table([(name, str(value)) for name, value in pairs.items()])


def human_size(count: int | float) -> str:
    """Bytes in binary units: `92 B`, `1.5 KiB`, `134.5 MiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def human_count(count: int) -> str:
    """Parameters as people write them: `134.5 M`, `1.54 B`."""
    if count >= 1_000_000_000:
        return f"{count / 1e9:.2f} B"
    if count >= 1_000_000:
        return f"{count / 1e6:.1f} M"
    return f"{count / 1e3:.1f} K" if count >= 1_000 else str(count)
