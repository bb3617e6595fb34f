"""Run the command line: in a process of its own, or, quicker, in this one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from typing import Any
from unittest import mock

from quickdraft.cli import main

PROGRAM = (sys.executable, "-m", "quickdraft")
Done = subprocess.CompletedProcess[str]


def quickdraft(
    *arguments: object, input: str | bytes = "", env: dict[str, str] | None = None, **rest: Any
) -> Done:
    """Run `quickdraft ARGUMENTS` to its end. input: for standard input, as UTF-8 if it is text."""
    done = subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        input=input.encode() if isinstance(input, str) else input,
        capture_output=True,
        timeout=60,
        env={**os.environ, **(env or {})},
        **rest,
    )
    return Done(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def call(*arguments: object, input: str | bytes = "") -> Done:
    """The same without a new process: standard streams are replaced and `main` is called."""
    data = input.encode() if isinstance(input, str) else input
    out, err = io.BytesIO(), io.BytesIO()
    with (
        mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(data))),
        mock.patch("sys.stdout", io.TextIOWrapper(out)),
        mock.patch("sys.stderr", io.TextIOWrapper(err)),
    ):
        line = [str(argument) for argument in arguments]
        code = main(line)
        return Done(line, code, out.getvalue().decode(), err.getvalue().decode())
