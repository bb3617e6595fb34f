"""Lines of a dialogue: from a terminal with history, or from whatever standard input is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import click

from quickdraft.commands.options import check_text, decode_input
from quickdraft.commands.output import dim, is_terminal
from quickdraft.errors import InputError

QUOTES = '"""'
HISTORY_LINES = 1000


class LineReader:
    """Reads turns; a turn that opens with three quotes goes on to the line that closes them."""

    def __init__(self, prompt: str = ">>> ", continuation: str = "... ") -> None:
        self.interactive = is_terminal(sys.stdin)
        self._prompt = prompt
        self._continuation = continuation

    def turn(self) -> tuple[str, bool]:
        """The next turn without the white space around it, and whether it stood in quotes.

        Ctrl-C at a terminal drops what is typed; a second one in a row is passed on.

        Raises:
            EOFError: there is none.
            KeyboardInterrupt: Ctrl-C, twice.
            InputError: it is not UTF-8.
        """
        try:
            return self._turn()
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            click.echo("\n" + dim("Ctrl-C again, Ctrl-D or /bye leaves"), err=True)
        return self._turn()

    def _turn(self) -> tuple[str, bool]:
        first = self._line(self._prompt).strip()
        if not first.startswith(QUOTES):
            return first, False
        lines = [first.removeprefix(QUOTES)]
        while not lines[-1].rstrip().endswith(QUOTES):
            try:
                lines.append(self._line(self._continuation))
            except EOFError:
                break
        lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
        return "\n".join(lines).strip("\n"), True

    def _line(self, prompt: str) -> str:
        if self.interactive:
            return self._typed(prompt)
        if sys.stdin is None or sys.stdin.closed:
            raise EOFError
        data = sys.stdin.buffer.readline()
        if not data:
            raise EOFError
        return decode_input(data).rstrip("\r\n")

    def _typed(self, prompt: str) -> str:
        """A line of a terminal. The prompt goes where the person looks, not into a file."""
        if not is_terminal(sys.stdout):
            sys.stderr.write(prompt)
            sys.stderr.flush()
            prompt = ""
        try:
            return check_text("line", input(prompt))
        except UnicodeDecodeError:
            raise InputError("the line is not valid UTF-8") from None


@contextmanager
def history(file: Path) -> Iterator[None]:
    """Keep what is typed from one run to the next, where readline exists.

    A history that cannot be read or written is no reason to stop.
    """
    readline = _readline()
    if readline is None or not is_terminal(sys.stdin):
        yield
        return
    try:
        readline.read_history_file(file)
    except (OSError, UnicodeDecodeError):
        readline.clear_history()
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file.touch(mode=0o600)
            readline.write_history_file(file)
        except OSError:
            pass


def _readline() -> ModuleType | None:
    try:
        import readline
    except ImportError:
        return None
    return readline
