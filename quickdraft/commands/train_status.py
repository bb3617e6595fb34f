"""How far a long command is: one line on standard error, drawn anew on a terminal."""

from __future__ import annotations

import sys
import time
from importlib.util import find_spec
from typing import Self

import click

from quickdraft.commands.output import is_terminal
from quickdraft.errors import MissingExtra

TERMINAL_SECONDS = 0.5
LOG_SECONDS = 60.0
"""A log that nobody watches gets a line this often."""


class StatusLine:
    """Takes lines as they come and shows the latest now and then, as a context manager."""

    def __init__(self, quiet: bool = False) -> None:
        """quiet: show lines on a terminal only."""
        self._drawn = is_terminal(sys.stderr)
        self._quiet = quiet and not self._drawn
        self._pause = TERMINAL_SECONDS if self._drawn else LOG_SECONDS
        self._next = time.monotonic() + (0.0 if self._drawn else self._pause)
        self._width = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._width:
            click.echo("\r" + " " * self._width + "\r", nl=False, err=True)

    def __call__(self, line: str) -> None:
        """Show a line, unless the last one was shown just now."""
        now = time.monotonic()
        if self._quiet or now < self._next:
            return
        self._next = now + self._pause
        if not self._drawn:
            click.echo(line, err=True)
            return
        click.echo("\r" + line.ljust(self._width), nl=False, err=True)
        self._width = len(line)


def duration(seconds: float) -> str:
    """Time as people say it: `48 s`, `12 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def require_training() -> None:
    """Refuse to train without what training needs.

    Raises:
        MissingExtra: a package is not installed.
    """
    for package in ("torch", "accelerate"):
        if find_spec(package) is None:
            raise MissingExtra(package, "train")
