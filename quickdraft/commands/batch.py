"""Several files in one command: what fails is said, and the others go on."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from quickdraft.commands.options import wants_traceback
from quickdraft.commands.output import print_json, report_failure
from quickdraft.errors import Cancelled, QuickdraftError


class Batch:
    """Counts the files that fail. An interruption is no failure of a file and ends them all."""

    def __init__(self, as_json: bool) -> None:
        """as_json: a failure is an object on standard output, too."""
        self._as_json = as_json
        self._codes: list[int] = []

    @contextmanager
    def guard(self, file: Path) -> Iterator[None]:
        """Report what goes wrong with a file inside, and go on after it."""
        try:
            yield
        except Cancelled:
            raise
        except QuickdraftError as error:
            self.fail(file, error)

    def fail(self, file: Path, error: QuickdraftError, **found: Any) -> None:
        """Report that a file failed. found: what there is of it all the same, for the object."""
        if wants_traceback():
            traceback.print_exception(error)
        kind, message = type(error).__name__, str(error)
        if self._as_json:
            told = {"type": kind, "message": message}
            print_json({"file": str(file), **found, "error": told})
        named = message if str(file) in message else f"{file}: {message}"
        report_failure(kind, named, as_json=False)
        self._codes.append(error.exit_code)

    @property
    def interrupted(self) -> bool:
        """Whether somebody interrupted a file."""
        return Cancelled.exit_code in self._codes

    def end(self) -> None:
        """Leave the command with an exit code if a file failed: 2 if all failures are bad input,
        130 if somebody interrupted, else 1.

        Raises:
            Exit: a file failed.
        """
        if self.interrupted:
            raise click.exceptions.Exit(Cancelled.exit_code)
        if self._codes:
            raise click.exceptions.Exit(2 if set(self._codes) == {2} else 1)
