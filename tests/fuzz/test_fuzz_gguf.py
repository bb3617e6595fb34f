"""The fuzzer runs, and finds nothing in the time of a test; by hand it runs for longer."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FUZZER = Path(__file__).with_name("fuzz_gguf.py")
SECONDS = 20
LEAST_RUNS = 1_000


def test_twenty_seconds_find_nothing(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has wheels for Linux on x86-64 only")
    done = subprocess.run(
        [sys.executable, str(FUZZER), "--seconds", str(SECONDS), "--corpus", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=SECONDS + 60,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-4_000:]
    assert not list(tmp_path.glob("finding-*"))
    counts = ast.literal_eval(next(line for line in done.stdout.splitlines() if "'runs'" in line))
    assert counts["runs"] > LEAST_RUNS
    assert counts["headers"] > 0
    assert counts["models"] > 0
