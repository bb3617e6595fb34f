"""Damaged nodes never end the process; by hand the loop runs for longer."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.native

FUZZER = Path(__file__).with_name("fuzz_ops.py")
RUNS = 500


def test_damaged_nodes() -> None:
    done = subprocess.run(
        [sys.executable, str(FUZZER), "--runs", str(RUNS)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    # Below 0: a signal. The last line of stderr names the run.
    assert done.returncode == 0, done.stderr[-2_000:]
    counts = ast.literal_eval(done.stdout.splitlines()[-1])
    assert sum(counts.values()) == RUNS
    assert min(counts[how] for how in ("ran", "refused at load", "refused in a run")) > RUNS // 50
