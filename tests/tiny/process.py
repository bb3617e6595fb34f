"""Run the command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

PROGRAM = (sys.executable, "-m", "quickdraft.cli")


def quickdraft(
    *arguments: object, input: str | bytes = "", env: dict[str, str] | None = None, **rest: Any
) -> subprocess.CompletedProcess[str]:
    """Run `quickdraft ARGUMENTS` to its end. input: for standard input, as UTF-8 if it is text."""
    done = subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        input=input.encode() if isinstance(input, str) else input,
        capture_output=True,
        timeout=60,
        env={**os.environ, **(env or {})},
        **rest,
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)
