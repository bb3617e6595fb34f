"""A tiny bundle to run commands on, and a way to run them in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny.models import write_tiny_model

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 45,216 parameters with a context of 100,000 tokens."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    write_tiny_model(folder, max_position_embeddings=100_000)
    return folder


@pytest.fixture(scope="session")
def quickdraft() -> Command:
    """Run the command line; `input` is text or bytes for standard input."""

    def call(
        *arguments: object, input: str | bytes = "", env: dict[str, str] | None = None, **rest: Any
    ) -> subprocess.CompletedProcess[str]:
        data = input.encode() if isinstance(input, str) else input
        done = subprocess.run(
            [sys.executable, "-m", "quickdraft.cli", *map(str, arguments)],
            input=data,
            capture_output=True,
            timeout=60,
            env={**os.environ, **(env or {})},
            **rest,
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    return call
